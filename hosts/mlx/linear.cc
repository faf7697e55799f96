#include "graft/mlx/linear.h"

#include <utility>

#include "graft/linear.h"
#include "graft/mlx/detail/composed.h"
#include "graft/mlx/detail/primitive.h"

namespace graft::mlx {
namespace {

using detail::Arrays;
using detail::FusedNode;
using detail::Outputs;
using detail::Views;

constexpr const char* kOp = "linear";

// What a call is besides its arrays, which come in this order: x, [w], [bias].
struct LinearCall {
  Weight weight;      // if absent, w is among the arrays
  bool bias = false;  // bias is among the arrays

  bool plain() const { return !weight.present(); }
  std::size_t bias_index() const { return plain() ? 2 : 1; }
  int out_features(const Arrays& in) const {
    return plain() ? in[1].shape(0) : static_cast<int>(weight.out_features());
  }
  int in_features(const Arrays& in) const {
    return plain() ? in[1].shape(1) : static_cast<int>(weight.in_features());
  }
  bool operator==(const LinearCall&) const = default;
};

Weight weight_of(const LinearCall& call, Views& views, const Arrays& in) {
  return call.plain() ? Weight(views.weight(in[1])) : views.weight(call.weight);
}

mx::array matrix_of(const LinearCall& call, const Arrays& in, mx::Stream s) {
  return call.plain() ? in[1] : detail::unpacked(call.weight, s);
}

// Inputs: dy, [w]. Output: dx. x is not among the inputs, so that nothing holds it for this.
struct FusedLinearBackward {
  using State = LinearCall;
  using Params = LinearBackward;
  static constexpr const char* kName = "GraftLinearBackward";
  static constexpr Pass kPass = Pass::kBackward;
  static constexpr auto kRun = linear_backward;

  static Outputs outputs(const State& call, const Arrays& in) {
    return {{detail::with_last(in[0].shape(), call.in_features(in))}, {in[0].dtype()}};
  }
  static Params params(const State& call, Views& views, const Arrays& in, const Arrays& out) {
    Params params;
    params.dy = views.strided_rows(in[0]);
    params.weight = weight_of(call, views, in);
    params.dx = views.out_rows(out[0]);
    return params;
  }
  static std::vector<bool> has_rows(const State& call, const Arrays&) {
    if (call.plain()) return {true, false};
    return {true};
  }
  // The gradient of a product in x is the same at every x.
  static Arrays composed(const State& call, const Arrays& in, mx::Stream s) {
    const auto x = mx::zeros(outputs(call, in).shapes[0], in[0].dtype(), s);
    const auto w = matrix_of(call, in, s);
    const auto y = [&](const Arrays& v) { return Arrays{detail::composed_product(v[0], w, s)}; };
    return detail::vjp_in(y, {x}, {in[0]}, {0});
  }
};

// Inputs: x, [w], [bias]. Output: y.
struct FusedLinear {
  using State = LinearCall;
  using Params = LinearForward;
  static constexpr const char* kName = "GraftLinear";
  static constexpr Pass kPass = Pass::kForward;
  static constexpr auto kRun = linear_forward;

  static Outputs outputs(const State& call, const Arrays& in) {
    return {{detail::with_last(in[0].shape(), call.out_features(in))}, {in[0].dtype()}};
  }
  static Params params(const State& call, Views& views, const Arrays& in, const Arrays& out) {
    Params params;
    params.x = views.strided_rows(in[0]);
    params.weight = weight_of(call, views, in);
    if (call.bias) params.bias = views.vector(in[call.bias_index()]);
    params.y = views.out_rows(out[0]);
    return params;
  }
  static std::vector<bool> has_rows(const State&, const Arrays& in) {
    std::vector<bool> rows(in.size(), false);
    rows[0] = true;
    return rows;
  }
  static Arrays composed(const State& call, const Arrays& in, mx::Stream s) {
    const auto y = detail::composed_product(in[0], matrix_of(call, in, s), s);
    if (!call.bias) return {y};
    return {mx::astype(mx::add(y, in[call.bias_index()], s), in[0].dtype(), s)};
  }

  static mx::array dx(const detail::Gradients<State>& call) {
    Arrays inputs{call.cotangents[0]};
    if (call.state.plain()) inputs.push_back(call.primals[1]);
    Support support = detail::serves_dx(call.state.weight);
    if (support) support = FusedNode<FusedLinearBackward>::supported(call.state, inputs, call.s);
    if (!support) return call.composed(support, 1, {0})[0];
    return FusedNode<FusedLinearBackward>::make(call.state, inputs, call.caller, call.s)[0];
  }

  static Arrays gradients(const detail::Gradients<State>& call) {
    const mx::array &x = call.primals[0], &dy = call.cotangents[0];
    Arrays gradients;
    for (const int i : call.argnums) {
      const mx::Dtype dtype = call.primals[static_cast<std::size_t>(i)].dtype();
      const bool is_w = call.state.plain() && i == 1;
      gradients.push_back(i == 0 ? dx(call)
                          : is_w ? detail::weight_gradient(x, dy, dtype, call.s)
                                 : detail::bias_gradient(dy, dtype, call.s));
    }
    return gradients;
  }
};

mx::array run(LinearCall call, Arrays inputs, const std::optional<mx::array>& bias,
              mx::StreamOrDevice s) {
  const mx::array& x = inputs[0];
  detail::expect_rows(kOp, "x", x);
  detail::expect_shape(kOp, "x", x, detail::with_last(x.shape(), call.in_features(inputs)));
  if (bias) {
    detail::expect_shape(kOp, "bias", *bias, {call.out_features(inputs)});
    inputs.push_back(*bias);
    call.bias = true;
  }
  return detail::fused_or_composed<FusedLinear>(call, inputs, {kOp}, mx::to_stream(s))[0];
}

}  // namespace

mx::array linear(const mx::array& x, const Weight& w, const std::optional<mx::array>& bias,
                 mx::StreamOrDevice s) {
  detail::expect_present(kOp, "w", w);
  if (const auto* array = detail::array_of(w)) return linear(x, *array, bias, s);
  LinearCall call;
  call.weight = w;
  return run(std::move(call), {x}, bias, s);
}

mx::array linear(const mx::array& x, const mx::array& w, const std::optional<mx::array>& bias,
                 mx::StreamOrDevice s) {
  detail::expect_matrix(kOp, "w", w);
  return run({}, {x, w}, bias, s);
}

}  // namespace graft::mlx
