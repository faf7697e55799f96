#include "graft/mlx/detail/composed.h"

#include <mlx/backend/cpu/encoder.h>
#include <mlx/primitives.h>

#include <memory>
#include <utility>
#include <vector>

#include "graft/mlx/detail/views.h"

namespace graft::mlx::detail {
namespace {

// A source: no inputs, the weight is its state.
class Unpack : public mx::UnaryPrimitive {
 public:
  Unpack(mx::Stream stream, Weight weight)
      : mx::UnaryPrimitive(stream), weight_(std::move(weight)) {}

  void eval_cpu(const std::vector<mx::array>&, mx::array& output) override {
    const TensorView view = allocate(output);
    mx::cpu::get_command_encoder(stream()).dispatch(
        [view, weight = weight_, keep = output.data_shared_ptr()] { weight.unpack(view); });
  }
  void eval_gpu(const std::vector<mx::array>&, mx::array&) override {
    throw std::runtime_error("[unpack] a packed weight unpacks on a CPU stream only");
  }
  const char* name() const override { return "GraftUnpack"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    return static_cast<const Unpack&>(other).weight_ == weight_;
  }
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>&) override {
    return {{static_cast<int>(weight_.out_features()), static_cast<int>(weight_.in_features())}};
  }

 private:
  Weight weight_;
};

}  // namespace

mx::array unpacked(const Weight& w, mx::Stream s) {
  const mx::Stream cpu = s.device == mx::Device::cpu ? s : mx::default_stream(mx::Device::cpu);
  return mx::array({static_cast<int>(w.out_features()), static_cast<int>(w.in_features())},
                   dtype_of(w.dtype()), std::make_shared<Unpack>(cpu, w), {});
}

mx::array composed_product(const mx::array& x, const mx::array& w, mx::Stream s) {
  auto left = x;
  auto right = w;
  if (w.dtype() == mx::bfloat16 && x.dtype() != mx::float16) {
    left = mx::astype(mx::astype(x, mx::bfloat16, s), mx::float32, s);
    right = mx::astype(w, mx::float32, s);
  }
  return mx::astype(mx::matmul(left, mx::transpose(right, s), s), x.dtype(), s);
}

mx::array composed_delta(const mx::array& x, const mx::array& a, const mx::array& b, float scaling,
                         mx::Stream s) {
  const auto wide = [&](const mx::array& t) {
    return t.dtype() == mx::bfloat16 ? mx::astype(t, mx::float32, s) : t;
  };
  const auto h = mx::matmul(wide(x), wide(a), s);
  const auto y = mx::matmul(mx::multiply(h, mx::array(scaling, h.dtype()), s), wide(b), s);
  return mx::astype(y, x.dtype(), s);
}

mx::array as_matrix(const mx::array& x, mx::Stream s) {
  return mx::reshape(x, {static_cast<int>(rows_of(x.shape())), x.shape(-1)}, s);
}

mx::array weight_gradient(const mx::array& x, const mx::array& dy, mx::Dtype dtype, mx::Stream s) {
  return mx::astype(mx::matmul(mx::transpose(as_matrix(dy, s), s), as_matrix(x, s), s), dtype, s);
}

mx::array bias_gradient(const mx::array& dy, mx::Dtype dtype, mx::Stream s) {
  const auto sum = mx::sum(mx::astype(as_matrix(dy, s), mx::float32, s), 0, false, s);
  return mx::astype(sum, dtype, s);
}

mx::array composed_swiglu(const mx::array& gate, const mx::array& up, mx::Stream s) {
  return mx::multiply(mx::multiply(gate, mx::sigmoid(gate, s), s), up, s);
}

mx::array composed_linear_cross_entropy(const mx::array& x, const mx::array& w,
                                        const mx::array& targets, int ignore_index, mx::Stream s) {
  const auto logits = mx::astype(composed_product(x, w, s), mx::float32, s);
  const auto ignored = mx::equal(targets, mx::array(ignore_index, targets.dtype()), s);
  const auto safe = mx::where(ignored, mx::zeros_like(targets, s), targets, s);
  const auto picked =
      mx::squeeze(mx::take_along_axis(logits, mx::expand_dims(safe, -1, s), -1, s), -1, s);
  const auto losses = mx::subtract(mx::logsumexp(logits, -1, false, s), picked, s);
  return mx::where(ignored, mx::zeros_like(losses, s), losses, s);
}

}  // namespace graft::mlx::detail
