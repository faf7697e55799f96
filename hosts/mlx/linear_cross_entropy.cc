#include "graft/mlx/linear_cross_entropy.h"

#include <algorithm>
#include <atomic>

#include "graft/linear_cross_entropy.h"
#include "graft/mlx/detail/composed.h"
#include "graft/mlx/detail/primitive.h"
#include "graft/mlx/detail/views.h"

namespace graft::mlx {
namespace {

using detail::Arrays;

constexpr const char* kOp = "linear_cross_entropy";

// What a call is besides its arrays, which come in this order: x, targets, [w].
struct Call {
  Weight weight;  // if absent, w is among the arrays
  int ignore_index = -100;

  bool plain() const { return !weight.present(); }
  Weight shape_of_weight(const Arrays& inputs) const {
    if (!plain()) return weight;
    const auto& w = inputs[2];
    return detail::shape_only(w.dtype(), {w.shape(0), w.shape(1)});
  }
  bool operator==(const Call&) const = default;
};

Arrays composed_losses(const Call& call, const Arrays& inputs, mx::Stream s) {
  const auto w = call.plain() ? inputs[2] : detail::unpacked(call.weight, s);
  return {detail::composed_linear_cross_entropy(inputs[0], w, inputs[1], call.ignore_index, s)};
}

// d(losses)/dx from MLX ops, rows unscaled.
mx::array composed_gradient(const Call& call, const Arrays& inputs, mx::Stream s) {
  const auto losses = [&](const Arrays& values) { return composed_losses(call, values, s); };
  return detail::vjp_in(losses, inputs, {mx::ones(inputs[1].shape(), mx::float32, s)}, {0})[0];
}

// The call of the core, of shapes alone.
LinearCrossEntropy params_only(const Call& call, const Arrays& inputs, bool with_gradient) {
  const auto rows = detail::rows_of(inputs[0].shape());
  const TensorView x = detail::rows_only(inputs[0].shape(), inputs[0].dtype());
  LinearCrossEntropy params;
  params.x = x;
  params.weight = call.shape_of_weight(inputs);
  params.targets = detail::shape_only(mx::int32, {rows});
  params.ignore_index = call.ignore_index;
  params.losses = detail::shape_only(mx::float32, {rows});
  if (with_gradient) params.dx = x;
  return params;
}

Support supported(const Call& call, const Arrays& inputs, bool with_gradient, mx::Stream s) {
  if (auto support = detail::allowed(s); !support) return support;
  if (auto support = detail::dtypes_known(inputs, inputs.size()); !support) return support;
  if (with_gradient) {
    if (auto support = detail::serves_dx(call.weight); !support) return support;
  }
  return graft::supports(params_only(call, inputs, with_gradient));
}

// d(losses)/dx, handed on from the forward node that computed it. Only its derivatives are work,
// and they start again from x. Inputs: those of the forward node, the gradient.
class Gradient : public detail::FusedPrimitive {
 public:
  Gradient(mx::Stream stream, const detail::Caller& caller, Call call)
      : FusedPrimitive(stream, caller, Pass::kBackward), call_(std::move(call)) {}

  void evaluate(const Arrays& inputs, Arrays& outputs) override {
    outputs[0].copy_shared_buffer(inputs.back());
    dispatch({}, [](Context&) {});
  }
  std::size_t scratch(const Arrays&, const Arrays&) const override { return 0; }
  const char* name() const override { return "GraftLinearCrossEntropyGradient"; }
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override {
    return {inputs[0].shape()};
  }

 protected:
  Arrays composed(const Arrays& inputs) const override {
    const Arrays primals(inputs.begin(), inputs.end() - 1);
    return {composed_gradient(call_, primals, own_stream())};
  }

 private:
  Call call_;
};

// Outputs: losses, and d(losses)/dx, which is empty unless `want_gradient` came in time.
class Forward : public detail::FusedPrimitive {
 public:
  Forward(mx::Stream stream, const detail::Caller& caller, Call call)
      : FusedPrimitive(stream, caller, Pass::kForward), call_(std::move(call)) {}

  static Arrays make(const Call& call, const Arrays& inputs, const detail::Caller& caller,
                     mx::Stream s, bool want_gradient = false) {
    auto node = std::make_shared<Forward>(s, caller, call);
    node->gradient_wanted_ = want_gradient;
    return mx::array::make_arrays({inputs[1].shape(), inputs[0].shape()},
                                  {mx::float32, inputs[0].dtype()}, node, inputs);
  }

  void evaluate(const Arrays& inputs, Arrays& outputs) override {
    LinearCrossEntropy params;
    params.x = detail::rows_view(inputs[0], stream(), true);
    params.targets = detail::flat_view(inputs[1], stream());
    params.weight = call_.plain() ? detail::matrix_view(inputs[2]) : call_.weight;
    params.ignore_index = call_.ignore_index;
    params.losses = detail::allocate_flat(outputs[0]);
    if (gradient_wanted_) {
      params.dx = detail::allocate_rows(outputs[1]);
    } else {
      outputs[1].set_data(mx::allocator::malloc(0));
    }
    dispatch(outputs, [params](Context& context) { linear_cross_entropy(context, params); });
  }

  Arrays vjp(const Arrays& primals, const Arrays& cotangents, const std::vector<int>& argnums,
             const Arrays& outputs) override {
    const auto asks = [&](int i) {
      return std::find(argnums.begin(), argnums.end(), i) != argnums.end();
    };
    // W's gradient, dlogitsᵀ·x, has no kernel; x's then comes along with it.
    if (const auto support = supported(call_, primals, true, stream()); !support || asks(2)) {
      const std::string reason = support ? "the weight's gradient has no kernel" : support.reason;
      return composed_vjp(primals, {cotangents[0]}, argnums, reason);
    }
    Arrays gradients;
    for (const int argnum : argnums) {
      gradients.push_back(argnum == 0 ? dx(primals, cotangents[0], outputs)
                                      : mx::zeros_like(primals[1], stream()));
    }
    return gradients;
  }

  std::pair<Arrays, std::vector<int>> vmap(const Arrays& inputs,
                                           const std::vector<int>& axes) override {
    const bool rows = axes[0] >= 0 && axes[1] >= 0 && (!call_.plain() || axes[2] < 0);
    if (!rows) return FusedPrimitive::vmap(inputs, axes);
    return {make(call_, detail::batch_first(inputs, axes), caller(), stream(), gradient_wanted_),
            {0, 0}};
  }

  std::size_t scratch(const Arrays& inputs, const Arrays&) const override {
    return graft::scratch_bytes(params_only(call_, inputs, gradient_wanted_));
  }

  const char* name() const override { return "GraftLinearCrossEntropy"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    const auto& o = static_cast<const Forward&>(other);
    return o.call_ == call_ && o.gradient_wanted_ == gradient_wanted_;
  }
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override {
    return {inputs[1].shape(), inputs[0].shape()};
  }

 protected:
  Arrays composed(const Arrays& inputs) const override {
    const mx::Stream s = own_stream();
    return {composed_losses(call_, inputs, s)[0], composed_gradient(call_, inputs, s)};
  }

 private:
  mx::array dx(const Arrays& primals, const mx::array& dlosses, const Arrays& outputs) {
    const mx::Stream s = stream();
    mx::array gradient = outputs[1];
    if (!gradient_wanted_.exchange(true) && outputs[0].status() != mx::array::unscheduled) {
      // The losses were evaluated before anybody asked: once more, with the gradient.
      gradient = make(call_, primals, caller(), s, true)[1];
      gradient_wanted_ = false;
    }
    Arrays inputs = primals;
    inputs.push_back(gradient);
    const mx::array unscaled(gradient.shape(), gradient.dtype(),
                             std::make_shared<Gradient>(s, caller(), call_), inputs);
    const auto rows = mx::astype(mx::expand_dims(dlosses, -1, s), gradient.dtype(), s);
    return mx::multiply(unscaled, rows, s);
  }

  Call call_;
  std::atomic<bool> gradient_wanted_{false};
};

mx::array run(const Call& call, Arrays inputs, mx::StreamOrDevice device) {
  const mx::Stream s = mx::to_stream(device);
  const mx::array& x = inputs[0];
  if (x.ndim() == 0) detail::reject(kOp, "x", "at least one dimension", "a scalar");
  auto rows = x.shape();
  rows.pop_back();
  detail::expect_shape(kOp, "targets", inputs[1], rows);
  if (!mx::issubdtype(inputs[1].dtype(), mx::integer)) {
    detail::reject(kOp, "targets", "integers", "another dtype");
  }
  inputs[1] = mx::astype(inputs[1], mx::int32, s);
  const detail::Caller caller{kOp};
  const Support support = supported(call, inputs, false, s);
  if (support) return Forward::make(call, inputs, caller, s)[0];
  return detail::counted(composed_losses(call, inputs, s)[0], caller, Pass::kForward,
                         support.reason, s);
}

}  // namespace

mx::array linear_cross_entropy(const mx::array& x, const Weight& w, const mx::array& targets,
                               int ignore_index, mx::StreamOrDevice s) {
  detail::expect_present(kOp, "w", w);
  if (const auto* array = detail::array_of(w)) {
    return linear_cross_entropy(x, *array, targets, ignore_index, s);
  }
  if (x.ndim() > 0) {
    detail::expect_shape(kOp, "x", x,
                         detail::with_last(x.shape(), static_cast<int>(w.in_features())));
  }
  return run({w, ignore_index}, {x, targets}, s);
}

mx::array linear_cross_entropy(const mx::array& x, const mx::array& w, const mx::array& targets,
                               int ignore_index, mx::StreamOrDevice s) {
  detail::expect_matrix(kOp, "w", w);
  if (x.ndim() > 0) detail::expect_shape(kOp, "x", x, detail::with_last(x.shape(), w.shape(1)));
  return run({{}, ignore_index}, {x, targets, w}, s);
}

}  // namespace graft::mlx
