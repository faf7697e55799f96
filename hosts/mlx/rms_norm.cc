#include "graft/mlx/rms_norm.h"

#include <mlx/fast.h>

#include "graft/mlx/detail/primitive.h"
#include "graft/rms_norm.h"

namespace graft::mlx {
namespace {

using detail::Arrays;
using detail::FusedNode;
using detail::Outputs;
using detail::Views;

constexpr const char* kOp = "rms_norm";

struct RmsNormCall {
  float eps;
  bool residual;  // is among the inputs
  bool operator==(const RmsNormCall&) const = default;

  std::size_t weight_index() const { return residual ? 2 : 1; }
};

// {y} of x and weight, or {y, sum} of x, residual and weight; all in x's dtype.
Arrays composed_norm(const RmsNormCall& norm, const Arrays& in, mx::Stream s) {
  const mx::array sum = norm.residual ? mx::add(in[0], in[1], s) : in[0];
  const mx::array y = mx::fast::rms_norm(sum, in[norm.weight_index()], norm.eps, s);
  Arrays outputs{mx::astype(y, in[0].dtype(), s)};
  if (norm.residual) outputs.push_back(sum);
  return outputs;
}

// Inputs: dy, s, weight, rstd, [dsum]. Outputs: the wanted of ds and dweight, which is float32.
struct FusedRmsNormBackward {
  struct State {
    float eps;
    bool ds, dweight, dsum;
    bool operator==(const State&) const = default;
  };
  using Params = RmsNormBackward;
  static constexpr const char* kName = "GraftRmsNormBackward";
  static constexpr Pass kPass = Pass::kBackward;
  static constexpr auto kRun = rms_norm_backward;

  static Outputs outputs(const State& state, const Arrays& in) {
    Outputs outputs;
    if (state.ds) outputs.add(in[1].shape(), in[1].dtype());
    if (state.dweight) outputs.add(in[2].shape(), mx::float32);
    return outputs;
  }
  static Params params(const State& state, Views& views, const Arrays& in, const Arrays& out) {
    Params params;
    params.dy = views.rows(in[0]);
    params.s = views.rows(in[1]);
    params.weight = views.line(in[2]);
    params.eps = state.eps;
    params.rstd = views.line(in[3]);
    if (state.dsum) params.dsum = views.rows(in[4]);
    if (state.ds) params.ds = views.out_rows(out[0]);
    if (state.dweight) params.dweight = views.out_line(out.back());
    return params;
  }
  static std::vector<bool> has_rows(const State& state, const Arrays&) {
    if (state.dweight) return {};
    if (state.dsum) return {true, true, false, true, true};
    return {true, true, false, true};
  }
  // Makes rstd again from s instead of reading it, so that derivatives of this see all of s.
  static Arrays composed(const State& state, const Arrays& in, mx::Stream s) {
    const auto y = [&](const Arrays& v) { return composed_norm({state.eps, false}, v, s); };
    Arrays gradients = detail::vjp_in(y, {in[1], in[2]}, {in[0]}, {0, 1});
    if (state.dsum) gradients[0] = mx::add(gradients[0], in[4], s);
    Arrays wanted;
    if (state.ds) wanted.push_back(gradients[0]);
    if (state.dweight) wanted.push_back(mx::astype(gradients[1], mx::float32, s));
    return wanted;
  }
};

// Inputs: x, [residual], weight. Outputs: y, [sum], and 1 / √(mean(s²) + eps) for backward, which
// no caller sees.
struct FusedRmsNorm {
  using State = RmsNormCall;
  using Params = RmsNormForward;
  static constexpr const char* kName = "GraftRmsNorm";
  static constexpr Pass kPass = Pass::kForward;
  static constexpr auto kRun = rms_norm_forward;

  static Outputs outputs(const State& norm, const Arrays& in) {
    Outputs outputs{{in[0].shape()}, {in[0].dtype()}};
    if (norm.residual) outputs.add(in[0].shape(), in[0].dtype());
    outputs.add({in[0].shape().begin(), in[0].shape().end() - 1}, mx::float32);
    return outputs;
  }
  static Params params(const State& norm, Views& views, const Arrays& in, const Arrays& out) {
    Params params;
    params.x = views.rows(in[0]);
    if (norm.residual) params.residual = views.rows(in[1]);
    params.weight = views.line(in[norm.weight_index()]);
    params.eps = norm.eps;
    params.y = views.out_rows(out[0]);
    if (norm.residual) params.sum = views.out_rows(out[1]);
    params.rstd = views.out_line(out.back());
    return params;
  }
  static std::vector<bool> has_rows(const State& norm, const Arrays&) {
    if (norm.residual) return {true, true, false};
    return {true, false};
  }
  static Arrays composed(const State& norm, const Arrays& in, mx::Stream s) {
    Arrays outputs = composed_norm(norm, in, s);
    const auto wide = mx::astype(norm.residual ? outputs[1] : in[0], mx::float32, s);
    const auto mean = mx::mean(mx::square(wide, s), -1, false, s);
    outputs.push_back(mx::rsqrt(mx::add(mean, mx::array(norm.eps), s), s));
    return outputs;
  }

  // rstd's cotangent is not looked at: no caller sees it.
  static Arrays gradients(const detail::Gradients<State>& call) {
    const RmsNormCall& norm = call.state;
    const FusedRmsNormBackward::State wanted{norm.eps,
                                             call.asked(0) || (norm.residual && call.asked(1)),
                                             call.asked(norm.weight_index()), norm.residual};
    Arrays inputs{call.cotangents[0], norm.residual ? call.outputs[1] : call.primals[0],
                  call.primals[norm.weight_index()], call.outputs.back()};
    if (norm.residual) inputs.push_back(call.cotangents[1]);
    const Support support = FusedNode<FusedRmsNormBackward>::supported(wanted, inputs, call.s);
    if (!support) return call.composed(support, call.outputs.size() - 1, call.argnums);
    Arrays computed = FusedNode<FusedRmsNormBackward>::make(wanted, inputs, call.caller, call.s);
    // x and residual have one gradient.
    if (norm.residual && call.asked(0) && call.asked(1)) {
      computed.insert(computed.begin(), computed[0]);
    }
    return call.as_primals(computed);
  }
};

Arrays run(const Arrays& inputs, float eps, mx::StreamOrDevice device) {
  const RmsNormCall norm{eps, inputs.size() == 3};
  const mx::array& x = inputs[0];
  detail::expect_rows(kOp, "x", x);
  detail::expect_epsilon(kOp, eps);
  detail::expect_shape(kOp, "weight", inputs[norm.weight_index()], {x.shape(-1)});
  if (norm.residual) {
    detail::expect_shape(kOp, "residual", inputs[1], x.shape());
    if (inputs[1].dtype() != x.dtype()) detail::reject(kOp, "residual", "x's dtype", "another");
  }
  return detail::fused_or_composed<FusedRmsNorm>(norm, inputs, {kOp}, mx::to_stream(device));
}

}  // namespace

mx::array rms_norm(const mx::array& x, const mx::array& weight, float eps, mx::StreamOrDevice s) {
  return run({x, weight}, eps, s)[0];
}

std::pair<mx::array, mx::array> add_rms_norm(const mx::array& x, const mx::array& residual,
                                             const mx::array& weight, float eps,
                                             mx::StreamOrDevice s) {
  const Arrays outputs = run({x, residual, weight}, eps, s);
  return {outputs[0], outputs[1]};
}

}  // namespace graft::mlx
