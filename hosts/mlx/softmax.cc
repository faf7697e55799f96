#include "graft/mlx/softmax.h"

#include <cmath>
#include <string>

#include "graft/mlx/detail/metal.h"
#include "graft/mlx/detail/metal_softmax.h"
#include "graft/mlx/detail/primitive.h"
#include "graft/mlx/detail/views.h"
#include "graft/softmax.h"

namespace graft::mlx {
namespace {

using detail::Arrays;

constexpr const char* kOp = "softmax";

mx::array composed_softmax(const mx::array& x, float scale, mx::Stream s) {
  if (scale == 1.0f) return mx::softmax(x, -1, true, s);
  // The factor makes the product float32, as it is in the kernels.
  const auto z = mx::multiply(x, mx::array(scale), s);
  return mx::astype(mx::softmax(z, -1, true, s), x.dtype(), s);
}

// Inputs: dy, y. Output: dx.
class Backward : public detail::FusedPrimitive {
 public:
  Backward(mx::Stream stream, const detail::Caller& caller, float scale)
      : FusedPrimitive(stream, caller, Direction::kBackward), scale_(scale) {}

  static mx::array make(const Arrays& inputs, const detail::Caller& caller, float scale,
                        mx::Stream s) {
    return mx::array(inputs[0].shape(), inputs[0].dtype(),
                     std::make_shared<Backward>(s, caller, scale), inputs);
  }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override {
    SoftmaxBackward params;
    params.dy = detail::rows_view(inputs[0], stream(), true);
    params.y = detail::rows_view(inputs[1], stream(), true);
    params.scale = scale_;
    params.dx = detail::allocate_rows(outputs[0]);
    dispatch(outputs, [params](Context& context) { softmax_backward(context, params); });
  }

  std::pair<Arrays, std::vector<int>> vmap(const Arrays& inputs,
                                           const std::vector<int>& axes) override {
    if (axes[0] < 0 || axes[1] < 0) return FusedPrimitive::vmap(inputs, axes);
    return {{make(detail::batch_first(inputs, axes), caller(), scale_, stream())}, {0}};
  }

  const char* name() const override { return "GraftSoftmaxBackward"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    return static_cast<const Backward&>(other).scale_ == scale_;
  }
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override {
    return {inputs[0].shape()};
  }

 protected:
  Arrays composed(const Arrays& inputs) const override {
    const mx::Stream s = const_cast<Backward*>(this)->stream();
    const auto dy = mx::astype(inputs[0], mx::float32, s),
               y = mx::astype(inputs[1], mx::float32, s);
    const auto dot = mx::sum(mx::multiply(dy, y, s), -1, true, s);
    const auto slope = mx::multiply(y, mx::subtract(dy, dot, s), s);
    return {mx::astype(mx::multiply(slope, mx::array(scale_), s), inputs[0].dtype(), s)};
  }

 private:
  float scale_;
};

// Input: x. Output: y.
class Forward : public detail::FusedPrimitive {
 public:
  Forward(mx::Stream stream, const detail::Caller& caller, float scale)
      : FusedPrimitive(stream, caller, Direction::kForward), scale_(scale) {}

  static mx::array make(const mx::array& x, const detail::Caller& caller, float scale,
                        mx::Stream s) {
    return mx::array(x.shape(), x.dtype(), std::make_shared<Forward>(s, caller, scale), {x});
  }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override {
    SoftmaxForward params;
    params.x = detail::rows_view(inputs[0], stream(), true);
    params.scale = scale_;
    params.y = detail::allocate_rows(outputs[0]);
    dispatch(outputs, [params](Context& context) { softmax_forward(context, params); });
  }

  Arrays vjp(const Arrays& primals, const Arrays& cotangents, const std::vector<int>& argnums,
             const Arrays& outputs) override {
    auto support = detail::allowed(stream());
    if (support) {
      const auto matrix = detail::rows_only(primals[0].shape(), primals[0].dtype());
      support = graft::supports(SoftmaxBackward{matrix, matrix, scale_, matrix});
    }
    if (!support) return composed_vjp(primals, cotangents, argnums, support.reason);
    return {Backward::make({cotangents[0], outputs[0]}, caller(), scale_, stream())};
  }

  std::pair<Arrays, std::vector<int>> vmap(const Arrays& inputs,
                                           const std::vector<int>& axes) override {
    return {{make(detail::batch_first(inputs, axes)[0], caller(), scale_, stream())}, {0}};
  }

  const char* name() const override { return "GraftSoftmax"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    return static_cast<const Forward&>(other).scale_ == scale_;
  }
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override {
    return {inputs[0].shape()};
  }

 protected:
  Arrays composed(const Arrays& inputs) const override {
    return {composed_softmax(inputs[0], scale_, const_cast<Forward*>(this)->stream())};
  }

 private:
  float scale_;
};

Support supported(const mx::array& x, float scale, mx::Stream s) {
  if (auto support = detail::allowed(s); !support) return support;
  if (auto support = detail::dtypes_known({x}, 1); !support) return support;
  const TensorView matrix = detail::rows_only(x.shape(), x.dtype());
  return graft::supports(SoftmaxForward{matrix, scale, matrix});
}

}  // namespace

mx::array softmax(const mx::array& x, float scale, mx::StreamOrDevice device) {
  if (x.ndim() == 0) detail::reject(kOp, "x", "at least one dimension", "a scalar");
  detail::expect_floating(kOp, "x", x);
  if (!(std::isfinite(scale) && scale > 0.0f)) {
    detail::reject(kOp, "scale", "a positive number", std::to_string(scale));
  }
  const mx::Stream s = mx::to_stream(device);
  const detail::Caller caller{kOp};
  const bool metal = detail::on_metal(s);
  const Support support = metal ? detail::softmax_on_metal(x) : supported(x, scale, s);
  if (support && metal) {
    const auto composed = [scale, s](const Arrays& in) {
      return Arrays{composed_softmax(in[0], scale, s)};
    };
    return detail::metal_softmax(x, scale, composed, caller, s);
  }
  if (support) return Forward::make(x, caller, scale, s);
  return detail::counted(composed_softmax(x, scale, s), caller, Direction::kForward, support.reason,
                         s);
}

}  // namespace graft::mlx
