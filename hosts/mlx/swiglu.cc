#include "graft/mlx/swiglu.h"

#include "graft/mlx/detail/composed.h"
#include "graft/mlx/detail/primitive.h"
#include "graft/mlx/detail/views.h"
#include "graft/swiglu.h"

namespace graft::mlx {
namespace {

using detail::Arrays;

constexpr const char* kOp = "swiglu";

// A batch of gate and up together is more rows of both.
bool all_batched(const std::vector<int>& axes) {
  for (const int axis : axes) {
    if (axis < 0) return false;
  }
  return true;
}

// Inputs: dy, gate, up. Outputs: dgate, dup.
class Backward : public detail::FusedPrimitive {
 public:
  Backward(mx::Stream stream, const detail::Caller& caller)
      : FusedPrimitive(stream, caller, Pass::kBackward) {}

  static Arrays make(const Arrays& inputs, const detail::Caller& caller, mx::Stream s) {
    const auto shape = inputs[0].shape();
    const auto dtype = inputs[0].dtype();
    return mx::array::make_arrays({shape, shape}, {dtype, dtype},
                                  std::make_shared<Backward>(s, caller), inputs);
  }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override {
    SwigluBackward params;
    params.dy = detail::rows_view(inputs[0], stream(), true);
    params.gate = detail::rows_view(inputs[1], stream(), true);
    params.up = detail::rows_view(inputs[2], stream(), true);
    params.dgate = detail::allocate_rows(outputs[0]);
    params.dup = detail::allocate_rows(outputs[1]);
    dispatch(outputs, [params](Context& context) { swiglu_backward(context, params); });
  }

  std::pair<Arrays, std::vector<int>> vmap(const Arrays& inputs,
                                           const std::vector<int>& axes) override {
    if (!all_batched(axes)) return FusedPrimitive::vmap(inputs, axes);
    return {make(detail::batch_first(inputs, axes), caller(), stream()), {0, 0}};
  }

  const char* name() const override { return "GraftSwigluBackward"; }
  bool is_equivalent(const mx::Primitive&) const override { return true; }
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override {
    return {inputs[0].shape(), inputs[0].shape()};
  }

 protected:
  Arrays composed(const Arrays& inputs) const override {
    const mx::Stream s = const_cast<Backward*>(this)->stream();
    const auto y = [&](const Arrays& values) {
      return Arrays{detail::composed_swiglu(values[0], values[1], s)};
    };
    return detail::vjp_in(y, {inputs[1], inputs[2]}, {inputs[0]}, {0, 1});
  }
};

class Forward : public detail::FusedPrimitive {
 public:
  Forward(mx::Stream stream, const detail::Caller& caller)
      : FusedPrimitive(stream, caller, Pass::kForward) {}

  static mx::array make(const Arrays& inputs, const detail::Caller& caller, mx::Stream s) {
    return mx::array(inputs[0].shape(), inputs[0].dtype(), std::make_shared<Forward>(s, caller),
                     inputs);
  }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override {
    SwigluForward params;
    params.gate = detail::rows_view(inputs[0], stream(), true);
    params.up = detail::rows_view(inputs[1], stream(), true);
    params.y = detail::allocate_rows(outputs[0]);
    dispatch(outputs, [params](Context& context) { swiglu_forward(context, params); });
  }

  Arrays vjp(const Arrays& primals, const Arrays& cotangents, const std::vector<int>& argnums,
             const Arrays&) override {
    auto support = detail::allowed(stream());
    if (support) {
      const auto view = detail::rows_only(primals[0].shape(), primals[0].dtype());
      support = graft::supports(SwigluBackward{view, view, view, view, view});
    }
    if (!support) return composed_vjp(primals, cotangents, argnums, support.reason);
    const Arrays both = Backward::make({cotangents[0], primals[0], primals[1]}, caller(), stream());
    Arrays gradients;
    for (const int argnum : argnums) gradients.push_back(both[static_cast<std::size_t>(argnum)]);
    return gradients;
  }

  std::pair<Arrays, std::vector<int>> vmap(const Arrays& inputs,
                                           const std::vector<int>& axes) override {
    if (!all_batched(axes)) return FusedPrimitive::vmap(inputs, axes);
    return {{make(detail::batch_first(inputs, axes), caller(), stream())}, {0}};
  }

  const char* name() const override { return "GraftSwiglu"; }
  bool is_equivalent(const mx::Primitive&) const override { return true; }
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override {
    return {inputs[0].shape()};
  }

 protected:
  Arrays composed(const Arrays& inputs) const override {
    const mx::Stream s = const_cast<Forward*>(this)->stream();
    return {detail::composed_swiglu(inputs[0], inputs[1], s)};
  }
};

Support supported(const mx::array& gate, mx::Stream s) {
  if (auto support = detail::allowed(s); !support) return support;
  if (auto support = detail::dtypes_known({gate}, 1); !support) return support;
  const auto view = detail::rows_only(gate.shape(), gate.dtype());
  return graft::supports(SwigluForward{view, view, view});
}

}  // namespace

mx::array swiglu(const mx::array& gate, const mx::array& up, mx::StreamOrDevice device) {
  if (gate.ndim() == 0) detail::reject(kOp, "gate", "at least one dimension", "a scalar");
  detail::expect_shape(kOp, "up", up, gate.shape());
  if (up.dtype() != gate.dtype()) detail::reject(kOp, "up", "the dtype of gate", "another");
  const mx::Stream s = mx::to_stream(device);
  const detail::Caller caller{kOp};
  const Support support = supported(gate, s);
  if (support) return Forward::make({gate, up}, caller, s);
  return detail::counted(detail::composed_swiglu(gate, up, s), caller, Pass::kForward,
                         support.reason, s);
}

}  // namespace graft::mlx
