#include "graft/mlx/layer_norm.h"

#include <mlx/fast.h>

#include "graft/layer_norm.h"
#include "graft/mlx/detail/primitive.h"

namespace graft::mlx {
namespace {

using detail::Arrays;
using detail::FusedNode;
using detail::Outputs;
using detail::Views;
using Optional = std::optional<mx::array>;

constexpr const char* kOp = "layer_norm";

struct LayerNormCall {
  float eps;
  bool weight, bias;  // are among the inputs
  bool operator==(const LayerNormCall&) const = default;

  std::size_t weight_index() const { return 1; }
  std::size_t bias_index() const { return weight ? 2 : 1; }
};

// y of x, [weight], [bias]. A weight of a wider dtype than x would make y as wide.
mx::array composed_norm(const LayerNormCall& norm, const Arrays& in, mx::Stream s) {
  const Optional weight = norm.weight ? Optional(in[norm.weight_index()]) : std::nullopt;
  const Optional bias = norm.bias ? Optional(in[norm.bias_index()]) : std::nullopt;
  return mx::astype(mx::fast::layer_norm(in[0], weight, bias, norm.eps, s), in[0].dtype(), s);
}

// Inputs: dy, x, [weight], mean, rstd. Outputs: the wanted of dx, dweight and dbias, which are
// float32.
struct FusedLayerNormBackward {
  struct State {
    LayerNormCall norm;
    bool dx, dweight, dbias;
    bool operator==(const State&) const = default;
  };
  using Params = LayerNormBackward;
  static constexpr const char* kName = "GraftLayerNormBackward";
  static constexpr Pass kPass = Pass::kBackward;
  static constexpr auto kRun = layer_norm_backward;

  static Outputs outputs(const State& state, const Arrays& in) {
    Outputs outputs;
    if (state.dx) outputs.add(in[1].shape(), in[1].dtype());
    if (state.dweight) outputs.add({in[1].shape(-1)}, mx::float32);
    if (state.dbias) outputs.add({in[1].shape(-1)}, mx::float32);
    return outputs;
  }
  static Params params(const State& state, Views& views, const Arrays& in, const Arrays& out) {
    Params params;
    params.dy = views.rows(in[0]);
    params.x = views.rows(in[1]);
    if (state.norm.weight) params.weight = views.line(in[2]);
    params.eps = state.norm.eps;
    params.mean = views.line(in[in.size() - 2]);
    params.rstd = views.line(in.back());
    std::size_t next = 0;
    if (state.dx) params.dx = views.out_rows(out[next++]);
    if (state.dweight) params.dweight = views.out_line(out[next++]);
    if (state.dbias) params.dbias = views.out_line(out[next]);
    return params;
  }
  static std::vector<bool> has_rows(const State& state, const Arrays&) {
    if (state.dweight || state.dbias) return {};
    if (state.norm.weight) return {true, true, false, true, true};
    return {true, true, true, true};
  }
  // Makes mean and rstd again from x instead of reading them, so that derivatives of this see all
  // of x.
  static Arrays composed(const State& state, const Arrays& in, mx::Stream s) {
    const LayerNormCall& norm = state.norm;
    Arrays primals{in[1]};
    if (norm.weight) primals.push_back(in[2]);
    // The gradient of a bias does not depend on it.
    if (norm.bias) primals.push_back(mx::zeros({in[1].shape(-1)}, in[1].dtype(), s));
    std::vector<int> argnums;
    if (state.dx) argnums.push_back(0);
    if (state.dweight) argnums.push_back(static_cast<int>(norm.weight_index()));
    if (state.dbias) argnums.push_back(static_cast<int>(norm.bias_index()));
    const auto y = [&](const Arrays& v) { return Arrays{composed_norm(norm, v, s)}; };
    Arrays gradients = detail::vjp_in(y, primals, {in[0]}, argnums);
    for (std::size_t i = state.dx ? 1 : 0; i < gradients.size(); ++i) {
      gradients[i] = mx::astype(gradients[i], mx::float32, s);
    }
    return gradients;
  }
};

// Inputs: x, [weight], [bias]. Outputs: y, and mean and rstd for backward, which no caller sees.
struct FusedLayerNorm {
  using State = LayerNormCall;
  using Params = LayerNormForward;
  static constexpr const char* kName = "GraftLayerNorm";
  static constexpr Pass kPass = Pass::kForward;
  static constexpr auto kRun = layer_norm_forward;

  static Outputs outputs(const State&, const Arrays& in) {
    const mx::Shape rows(in[0].shape().begin(), in[0].shape().end() - 1);
    return {{in[0].shape(), rows, rows}, {in[0].dtype(), mx::float32, mx::float32}};
  }
  static Params params(const State& norm, Views& views, const Arrays& in, const Arrays& out) {
    Params params;
    params.x = views.rows(in[0]);
    if (norm.weight) params.weight = views.line(in[norm.weight_index()]);
    if (norm.bias) params.bias = views.line(in[norm.bias_index()]);
    params.eps = norm.eps;
    params.y = views.out_rows(out[0]);
    params.mean = views.out_line(out[1]);
    params.rstd = views.out_line(out[2]);
    return params;
  }
  static std::vector<bool> has_rows(const State&, const Arrays& in) {
    std::vector<bool> rows(in.size(), false);
    rows[0] = true;
    return rows;
  }
  static Arrays composed(const State& norm, const Arrays& in, mx::Stream s) {
    const mx::array wide = mx::astype(in[0], mx::float32, s);
    const mx::array mean = mx::mean(wide, -1, true, s);
    const mx::array apart = mx::subtract(wide, mean, s);
    const mx::array variance = mx::mean(mx::square(apart, s), -1, false, s);
    return {composed_norm(norm, in, s), mx::squeeze(mean, -1, s),
            mx::rsqrt(mx::add(variance, mx::array(norm.eps), s), s)};
  }

  // Cotangents of mean and rstd are not looked at: no caller sees those.
  static Arrays gradients(const detail::Gradients<State>& call) {
    const LayerNormCall& norm = call.state;
    const FusedLayerNormBackward::State wanted{norm, call.asked(0),
                                               norm.weight && call.asked(norm.weight_index()),
                                               norm.bias && call.asked(norm.bias_index())};
    Arrays inputs{call.cotangents[0], call.primals[0]};
    if (norm.weight) inputs.push_back(call.primals[norm.weight_index()]);
    inputs.insert(inputs.end(), {call.outputs[1], call.outputs[2]});
    const Support support = FusedNode<FusedLayerNormBackward>::supported(wanted, inputs, call.s);
    if (!support) return call.composed(support, 1, call.argnums);
    return call.as_primals(
        FusedNode<FusedLayerNormBackward>::make(wanted, inputs, call.caller, call.s));
  }
};

void check_affine(const char* name, const Optional& vector, const mx::array& x) {
  if (!vector) return;
  detail::expect_shape(kOp, name, *vector, {x.shape(-1)});
  detail::expect_floating(kOp, name, *vector);
}

}  // namespace

mx::array layer_norm(const mx::array& x, const Optional& weight, const Optional& bias, float eps,
                     mx::StreamOrDevice device) {
  detail::expect_rows(kOp, "x", x);
  check_affine("weight", weight, x);
  check_affine("bias", bias, x);
  detail::expect_epsilon(kOp, eps);
  Arrays inputs{x};
  if (weight) inputs.push_back(*weight);
  if (bias) inputs.push_back(*bias);
  const LayerNormCall norm{eps, weight.has_value(), bias.has_value()};
  return detail::fused_or_composed<FusedLayerNorm>(norm, inputs, {kOp}, mx::to_stream(device))[0];
}

}  // namespace graft::mlx
