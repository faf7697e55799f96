#include "graft/mlx/layer_norm.h"

#include <mlx/fast.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "graft/layer_norm.h"
#include "graft/mlx/detail/metal.h"
#include "graft/mlx/detail/metal_layer_norm.h"
#include "graft/mlx/detail/primitive.h"
#include "graft/mlx/detail/views.h"

namespace graft::mlx {
namespace {

using detail::Arrays;
using detail::LayerNormCall;
using Optional = std::optional<mx::array>;

constexpr const char* kOp = "layer_norm";

void check_affine(const char* name, const Optional& vector, const mx::array& x) {
  if (!vector) return;
  detail::expect_shape(kOp, name, *vector, {x.shape(-1)});
  detail::expect_floating(kOp, name, *vector);
}

// A weight of a wider dtype than x would make y as wide.
mx::array composed_norm(const LayerNormCall& call, mx::Stream s) {
  const auto y = mx::fast::layer_norm(call.x, call.weight, call.bias, call.eps, s);
  return mx::astype(y, call.x.dtype(), s);
}

TensorView vector_only(const Optional& vector) {
  return vector ? detail::shape_only(vector->dtype(), {vector->shape(0)}) : TensorView();
}

// Which gradients are wanted.
struct Wanted {
  bool dx, dweight, dbias;
  bool operator==(const Wanted&) const = default;
};

// Inputs: dy, x, mean, rstd, [weight]. Outputs: the wanted ones; dweight and dbias are float32.
class Backward : public detail::FusedPrimitive {
 public:
  Backward(mx::Stream stream, const detail::Caller& caller, float eps, Wanted wanted)
      : FusedPrimitive(stream, caller, Direction::kBackward), eps_(eps), wanted_(wanted) {}

  static Arrays make(const Arrays& inputs, const detail::Caller& caller, float eps, Wanted wanted,
                     mx::Stream s) {
    auto node = std::make_shared<Backward>(s, caller, eps, wanted);
    const auto shapes = node->output_shapes(inputs);
    std::vector<mx::Dtype> dtypes(shapes.size(), mx::float32);
    if (wanted.dx) dtypes[0] = inputs[1].dtype();
    return mx::array::make_arrays(shapes, dtypes, node, inputs);
  }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override {
    LayerNormBackward params;
    params.dy = detail::rows_view(inputs[0], stream(), true);
    params.x = detail::rows_view(inputs[1], stream(), true);
    params.mean = detail::flat_view(inputs[2], stream());
    params.rstd = detail::flat_view(inputs[3], stream());
    if (inputs.size() == 5) params.weight = detail::flat_view(inputs[4], stream());
    params.eps = eps_;
    auto output = outputs.begin();
    if (wanted_.dx) params.dx = detail::allocate_rows(*output++);
    if (wanted_.dweight) params.dweight = detail::allocate_flat(*output++);
    if (wanted_.dbias) params.dbias = detail::allocate_flat(*output);
    dispatch(outputs, [params](Context& context) { layer_norm_backward(context, params); });
  }

  std::pair<Arrays, std::vector<int>> vmap(const Arrays& inputs,
                                           const std::vector<int>& axes) override {
    bool rows = !wanted_.dweight && !wanted_.dbias;
    for (std::size_t i = 0; i < axes.size(); ++i) rows &= (axes[i] >= 0) == (i != 4);
    if (!rows) return FusedPrimitive::vmap(inputs, axes);
    return {make(detail::batch_first(inputs, axes), caller(), eps_, wanted_, stream()), {0}};
  }

  const char* name() const override { return "GraftLayerNormBackward"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    const auto& o = static_cast<const Backward&>(other);
    return o.eps_ == eps_ && o.wanted_ == wanted_;
  }
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override {
    std::vector<mx::Shape> shapes;
    if (wanted_.dx) shapes.push_back(inputs[1].shape());
    const int sums = int{wanted_.dweight} + int{wanted_.dbias};
    shapes.resize(shapes.size() + static_cast<std::size_t>(sums), {inputs[1].shape(-1)});
    return shapes;
  }

 protected:
  // Makes mean and rstd again from x instead of reading them, so that derivatives of this see all
  // of x.
  Arrays composed(const Arrays& inputs) const override {
    const mx::Stream s = const_cast<Backward*>(this)->stream();
    const bool weighted = inputs.size() == 5;
    const auto y = [&](const Arrays& in) {
      return Arrays{
          composed_norm({in[0], weighted ? Optional(in[1]) : std::nullopt, std::nullopt, eps_}, s)};
    };
    Arrays primals{inputs[1]};
    if (weighted) primals.push_back(inputs[4]);
    const auto argnums = weighted ? std::vector<int>{0, 1} : std::vector<int>{0};
    const Arrays gradients = detail::vjp_in(y, primals, {inputs[0]}, argnums);
    Arrays wanted;
    if (wanted_.dx) wanted.push_back(gradients[0]);
    if (wanted_.dweight) wanted.push_back(mx::astype(gradients[1], mx::float32, s));
    if (wanted_.dbias) {
      const auto rows = mx::reshape(
          mx::astype(inputs[0], mx::float32, s),
          {static_cast<int>(detail::rows_of(inputs[0].shape())), inputs[0].shape(-1)}, s);
      wanted.push_back(mx::sum(rows, 0, false, s));
    }
    return wanted;
  }

 private:
  float eps_;
  Wanted wanted_;
};

// Inputs: x, [weight], [bias]. Outputs: y, and mean and rstd for backward, which no caller sees.
class Forward : public detail::FusedPrimitive {
 public:
  Forward(mx::Stream stream, const detail::Caller& caller, float eps, bool weighted, bool biased)
      : FusedPrimitive(stream, caller, Direction::kForward),
        eps_(eps),
        weighted_(weighted),
        biased_(biased) {}

  static Arrays make(const LayerNormCall& call, const detail::Caller& caller, mx::Stream s) {
    auto node = std::make_shared<Forward>(s, caller, call.eps, call.weight.has_value(),
                                          call.bias.has_value());
    Arrays inputs{call.x};
    if (call.weight) inputs.push_back(*call.weight);
    if (call.bias) inputs.push_back(*call.bias);
    const auto shapes = node->output_shapes(inputs);
    return mx::array::make_arrays(shapes, {call.x.dtype(), mx::float32, mx::float32}, node, inputs);
  }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override {
    LayerNormForward params;
    params.x = detail::rows_view(inputs[0], stream(), true);
    if (weighted_) params.weight = detail::flat_view(inputs[1], stream());
    if (biased_) params.bias = detail::flat_view(inputs[bias_index()], stream());
    params.eps = eps_;
    params.y = detail::allocate_rows(outputs[0]);
    params.mean = detail::allocate_flat(outputs[1]);
    params.rstd = detail::allocate_flat(outputs[2]);
    dispatch(outputs, [params](Context& context) { layer_norm_forward(context, params); });
  }

  Arrays vjp(const Arrays& primals, const Arrays& cotangents, const std::vector<int>& argnums,
             const Arrays& outputs) override {
    const auto asks = [&](std::size_t i) {
      return std::find(argnums.begin(), argnums.end(), static_cast<int>(i)) != argnums.end();
    };
    const Wanted wanted{asks(0), weighted_ && asks(1), biased_ && asks(bias_index())};
    if (const auto support = supported(primals, wanted); !support) {
      return composed_vjp(primals, {cotangents[0]}, argnums, support.reason);
    }
    Arrays inputs{cotangents[0], primals[0], outputs[1], outputs[2]};
    if (weighted_) inputs.push_back(primals[1]);
    const Arrays computed = Backward::make(inputs, caller(), eps_, wanted, stream());
    Arrays gradients;
    for (const int argnum : argnums) {
      const auto i = static_cast<std::size_t>(argnum);
      const std::size_t before = argnum == 0           ? 0
                                 : weighted_ && i == 1 ? std::size_t{wanted.dx}
                                                       : computed.size() - 1;
      gradients.push_back(mx::astype(computed[before], primals[i].dtype(), stream()));
    }
    return gradients;
  }

  std::pair<Arrays, std::vector<int>> vmap(const Arrays& inputs,
                                           const std::vector<int>& axes) override {
    for (std::size_t i = 0; i < axes.size(); ++i) {
      if ((axes[i] >= 0) != (i == 0)) return FusedPrimitive::vmap(inputs, axes);
    }
    return {make(call_of(detail::batch_first(inputs, axes)), caller(), stream()), {0, 0, 0}};
  }

  const char* name() const override { return "GraftLayerNorm"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    const auto& o = static_cast<const Forward&>(other);
    return o.eps_ == eps_ && o.weighted_ == weighted_ && o.biased_ == biased_;
  }
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override {
    mx::Shape of_rows = inputs[0].shape();
    of_rows.pop_back();
    return {inputs[0].shape(), of_rows, of_rows};
  }

 protected:
  Arrays composed(const Arrays& inputs) const override {
    const mx::Stream s = const_cast<Forward*>(this)->stream();
    const auto wide = mx::astype(inputs[0], mx::float32, s);
    const auto mean = mx::mean(wide, -1, true, s);
    const auto variance = mx::mean(mx::square(mx::subtract(wide, mean, s), s), -1, false, s);
    return {composed_norm(call_of(inputs), s), mx::squeeze(mean, -1, s),
            mx::rsqrt(mx::add(variance, mx::array(eps_), s), s)};
  }

 private:
  std::size_t bias_index() const { return weighted_ ? 2 : 1; }

  LayerNormCall call_of(const Arrays& inputs) const {
    return {inputs[0], weighted_ ? Optional(inputs[1]) : std::nullopt,
            biased_ ? Optional(inputs[bias_index()]) : std::nullopt, eps_};
  }

  Support supported(const Arrays& primals, Wanted wanted) {
    if (auto support = detail::allowed(stream()); !support) return support;
    const LayerNormCall call = call_of(primals);
    const TensorView matrix = detail::rows_only(call.x.shape(), call.x.dtype());
    const TensorView of_rows = detail::shape_only(mx::float32, {matrix.dim(0)});
    const TensorView sums = detail::shape_only(mx::float32, {matrix.dim(1)});
    LayerNormBackward params;
    params.dy = matrix;
    params.x = matrix;
    params.weight = vector_only(call.weight);
    params.mean = of_rows;
    params.rstd = of_rows;
    if (wanted.dx) params.dx = matrix;
    if (wanted.dweight) params.dweight = sums;
    if (wanted.dbias) params.dbias = sums;
    return graft::supports(params);
  }

  float eps_;
  bool weighted_;
  bool biased_;
};

Support supported(const LayerNormCall& call, mx::Stream s) {
  if (auto support = detail::allowed(s); !support) return support;
  Arrays inputs{call.x};
  if (call.weight) inputs.push_back(*call.weight);
  if (call.bias) inputs.push_back(*call.bias);
  if (auto support = detail::dtypes_known(inputs, inputs.size()); !support) return support;
  LayerNormForward params;
  params.x = detail::rows_only(call.x.shape(), call.x.dtype());
  params.weight = vector_only(call.weight);
  params.bias = vector_only(call.bias);
  params.eps = call.eps;
  params.y = detail::rows_only(call.x.shape(), call.x.dtype());
  return graft::supports(params);
}

}  // namespace

mx::array layer_norm(const mx::array& x, const Optional& weight, const Optional& bias, float eps,
                     mx::StreamOrDevice device) {
  if (x.ndim() == 0) detail::reject(kOp, "x", "at least one dimension", "a scalar");
  detail::expect_floating(kOp, "x", x);
  check_affine("weight", weight, x);
  check_affine("bias", bias, x);
  if (!(std::isfinite(eps) && eps >= 0.0f)) {
    detail::reject(kOp, "eps", "a number of at least 0", std::to_string(eps));
  }
  const mx::Stream s = mx::to_stream(device);
  const detail::Caller caller{kOp};
  const LayerNormCall call{x, weight, bias, eps};
  const bool metal = detail::on_metal(s);
  const Support support = metal ? detail::layer_norm_on_metal(call) : supported(call, s);
  if (support && metal) {
    const auto composed = [s](const LayerNormCall& c) { return composed_norm(c, s); };
    return detail::metal_layer_norm(call, composed, caller, s);
  }
  if (support) return Forward::make(call, caller, s)[0];
  return detail::counted(composed_norm(call, s), caller, Direction::kForward, support.reason, s);
}

}  // namespace graft::mlx
