#include "graft/mlx/detail/linear_primitive.h"

#include <algorithm>

#include "graft/mlx/detail/composed.h"
#include "graft/mlx/detail/views.h"

namespace graft::mlx::detail {
namespace {

Weight base_only(const LinearCall& call, const Arrays& inputs) {
  if (!call.plain()) return call.weight;
  return shape_only(inputs[1].dtype(), {inputs[1].shape(0), inputs[1].shape(1)});
}

// dx = dy·W. Inputs: dy, [w]. x is not among them, so that nothing holds it for this.
class LinearBackwardNode : public FusedPrimitive {
 public:
  LinearBackwardNode(mx::Stream stream, const Caller& caller, LinearCall call)
      : FusedPrimitive(stream, caller, Pass::kBackward), call_(std::move(call)) {}

  static mx::array make(const LinearCall& call, const Arrays& inputs, const Caller& caller,
                        mx::Stream s) {
    return mx::array(dx_shape(call, inputs), inputs[0].dtype(),
                     std::make_shared<LinearBackwardNode>(s, caller, call), inputs);
  }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override {
    const ConstTensorView dy = rows_view(inputs[0], stream());
    const Weight w = call_.plain() ? matrix_view(inputs[1]) : call_.weight;
    const TensorView dx = allocate_rows(outputs[0]);
    dispatch(outputs, [dy, w, dx](Context& context) { linear_backward(context, {dy, w, dx}); });
  }

  std::pair<Arrays, std::vector<int>> vmap(const Arrays& inputs,
                                           const std::vector<int>& axes) override {
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if ((i == 0) != (axes[i] >= 0)) return FusedPrimitive::vmap(inputs, axes);
    }
    const Arrays moved = batch_first(inputs, axes);
    return {{make(call_, moved, caller(), stream())}, {0}};
  }

  const char* name() const override { return "GraftLinearBackward"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    return static_cast<const LinearBackwardNode&>(other).call_ == call_;
  }
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override {
    return {dx_shape(call_, inputs)};
  }

 protected:
  // The gradient of a product in x is the same at every x.
  Arrays composed(const Arrays& inputs) const override {
    const mx::Stream s = const_cast<LinearBackwardNode*>(this)->stream();
    const auto x = mx::zeros(dx_shape(call_, inputs), inputs[0].dtype(), s);
    const auto w = call_.plain() ? inputs[1] : unpacked(call_.weight, s);
    const auto y = [&](const Arrays& values) { return Arrays{composed_product(values[0], w, s)}; };
    return vjp_in(y, {x}, {inputs[0]}, {0});
  }

 private:
  static mx::Shape dx_shape(const LinearCall& call, const Arrays& inputs) {
    const int in_features =
        call.plain() ? inputs[1].shape(1) : static_cast<int>(call.weight.in_features());
    return with_last(inputs[0].shape(), in_features);
  }

  LinearCall call_;
};

class LinearForwardNode : public FusedPrimitive {
 public:
  LinearForwardNode(mx::Stream stream, const Caller& caller, LinearCall call)
      : FusedPrimitive(stream, caller, Pass::kForward), call_(std::move(call)) {}

  static mx::array make(const LinearCall& call, const Arrays& inputs, const Caller& caller,
                        mx::Stream s) {
    return mx::array(with_last(inputs[0].shape(), call.out_features(inputs)), inputs[0].dtype(),
                     std::make_shared<LinearForwardNode>(s, caller, call), inputs);
  }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override {
    const ConstTensorView x = rows_view(inputs[0], stream());
    const Weight w = call_.plain() ? matrix_view(inputs[1]) : call_.weight;
    const ConstTensorView bias =
        call_.bias ? vector_view(inputs[call_.bias_index()]) : ConstTensorView();
    const TensorView y = allocate_rows(outputs[0]);
    dispatch(outputs, [x, w, bias, y](Context& context) {
      linear_forward(context, {x, w, bias, y});
    });
  }

  Arrays vjp(const Arrays& primals, const Arrays& cotangents, const std::vector<int>& argnums,
             const Arrays&) override {
    Arrays gradients;
    for (const int argnum : argnums) {
      gradients.push_back(gradient(primals, cotangents[0], static_cast<std::size_t>(argnum)));
    }
    return gradients;
  }

  std::pair<Arrays, std::vector<int>> vmap(const Arrays& inputs,
                                           const std::vector<int>& axes) override {
    if (std::any_of(axes.begin() + 1, axes.end(), [](int axis) { return axis >= 0; })) {
      return FusedPrimitive::vmap(inputs, axes);
    }
    return {{make(call_, batch_first(inputs, axes), caller(), stream())}, {0}};
  }

  const char* name() const override { return "GraftLinear"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    return static_cast<const LinearForwardNode&>(other).call_ == call_;
  }
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override {
    return {with_last(inputs[0].shape(), call_.out_features(inputs))};
  }

 protected:
  Arrays composed(const Arrays& inputs) const override {
    return {composed_linear(call_, inputs, const_cast<LinearForwardNode*>(this)->stream())};
  }

 private:
  mx::array gradient(const Arrays& primals, const mx::array& dy, std::size_t index) {
    if (index == 0) return dx(primals, dy);
    const mx::Dtype dtype = primals[index].dtype();
    if (call_.plain() && index == 1) return weight_gradient(primals[0], dy, dtype, stream());
    return bias_gradient(dy, dtype, stream());
  }

  mx::array dx(const Arrays& primals, const mx::array& dy) {
    const mx::array& x = primals[0];
    auto support = allowed(stream());
    if (support) support = serves_dx(call_.weight);
    if (support) {
      support = graft::supports(LinearBackward{rows_only(dy.shape(), dy.dtype()),
                                               base_only(call_, primals),
                                               rows_only(x.shape(), x.dtype())});
    }
    if (!support) return composed_vjp(primals, {dy}, {0}, support.reason)[0];
    Arrays inputs{dy};
    if (call_.plain()) inputs.push_back(primals[1]);
    return LinearBackwardNode::make(call_, inputs, caller(), stream());
  }

  LinearCall call_;
};

}  // namespace

Support supports_forward(const LinearCall& call, const Arrays& inputs, mx::Stream s) {
  if (auto support = allowed(s); !support) return support;
  if (auto support = dtypes_known(inputs, inputs.size()); !support) return support;
  const auto& x = inputs[0];
  ConstTensorView bias;
  if (call.bias) {
    const auto& given = inputs[call.bias_index()];
    bias = shape_only(given.dtype(), {given.shape(0)});
  }
  return graft::supports(
      LinearForward{rows_only(x.shape(), x.dtype()), base_only(call, inputs), bias,
                    shape_only(x.dtype(), {rows_of(x.shape()), call.out_features(inputs)})});
}

mx::array fused_linear(const LinearCall& call, const Arrays& inputs, const Caller& caller,
                       mx::Stream s) {
  return LinearForwardNode::make(call, inputs, caller, s);
}

mx::array composed_linear(const LinearCall& call, const Arrays& inputs, mx::Stream s) {
  const mx::array& x = inputs[0];
  const auto w = call.plain() ? inputs[1] : unpacked(call.weight, s);
  const auto y = composed_product(x, w, s);
  if (!call.bias) return y;
  return mx::astype(mx::add(y, inputs[call.bias_index()], s), x.dtype(), s);
}

}  // namespace graft::mlx::detail
