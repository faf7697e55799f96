#include "graft/mlx/attention.h"

#include <mlx/fast.h>

#include <string>

#include "graft/mlx/detail/primitive.h"

namespace graft::mlx {
namespace {

using detail::Arrays;
using detail::FusedNode;
using detail::Outputs;
using detail::Views;

constexpr const char* kOp = "attention";

bool equal(const AttentionOptions& a, const AttentionOptions& b) {
  const bool rotary = a.rotary.enabled == b.rotary.enabled && a.rotary.theta == b.rotary.theta &&
                      a.rotary.interleaved == b.rotary.interleaved &&
                      a.rotary.position == b.rotary.position &&
                      a.rotary.scaling_factor == b.rotary.scaling_factor;
  return rotary && a.scale == b.scale && a.causal == b.causal;
}

// MLX's own ops keep heads before tokens.
mx::array composed_attention(const Arrays& inputs, const AttentionOptions& options, mx::Stream s) {
  auto q = mx::swapaxes(inputs[0], 1, 2, s);
  auto k = mx::swapaxes(inputs[1], 1, 2, s);
  const auto v = mx::swapaxes(inputs[2], 1, 2, s);
  if (options.rotary.enabled) {
    const auto turn = [&](const mx::array& x, std::int64_t position) {
      return mx::fast::rope(x, x.shape(-1), options.rotary.interleaved, options.rotary.theta,
                            1.0f / options.rotary.scaling_factor, static_cast<int>(position),
                            std::nullopt, s);
    };
    q = turn(q, options.rotary.position + k.shape(2) - q.shape(2));
    k = turn(k, options.rotary.position);
  }
  const auto y = mx::fast::scaled_dot_product_attention(
      q, k, v, options.scale, options.causal ? "causal" : "", {}, {}, false, s);
  return mx::swapaxes(y, 1, 2, s);
}

// log Σ_j exp(score_ij), of a shape only: no composed op reads it.
mx::Shape logsumexp_shape(const mx::array& q) { return {q.shape(0), q.shape(2), q.shape(1)}; }

struct AttentionWanted {
  bool dq = false;
  bool dk = false;
  bool dv = false;

  bool operator==(const AttentionWanted&) const = default;
};

// Inputs: dy, q, k, v, y, logsumexp. Outputs: the wanted of dq, dk and dv.
struct FusedAttentionBackward {
  struct State {
    AttentionOptions options;
    AttentionWanted wanted;
    bool operator==(const State& other) const {
      return equal(options, other.options) && wanted == other.wanted;
    }
  };
  using Params = AttentionBackward;
  static constexpr const char* kName = "GraftAttentionBackward";
  static constexpr Pass kPass = Pass::kBackward;
  static constexpr auto kRun = attention_backward;
  static constexpr bool kBatchJoinsFirst = true;

  static Outputs outputs(const State& state, const Arrays& in) {
    Outputs outputs;
    if (state.wanted.dq) outputs.add(in[1].shape(), in[1].dtype());
    if (state.wanted.dk) outputs.add(in[2].shape(), in[1].dtype());
    if (state.wanted.dv) outputs.add(in[3].shape(), in[1].dtype());
    return outputs;
  }
  static Params params(const State& state, Views& views, const Arrays& in, const Arrays& out) {
    Params params;
    params.dy = views.tensor(in[0]);
    params.q = views.tensor(in[1]);
    params.k = views.tensor(in[2]);
    params.v = views.tensor(in[3]);
    params.y = views.tensor(in[4]);
    params.logsumexp = views.dense_tensor(in[5]);
    params.options = state.options;
    std::size_t next = 0;
    if (state.wanted.dq) params.dq = views.out_tensor(out[next++]);
    if (state.wanted.dk) params.dk = views.out_tensor(out[next++]);
    if (state.wanted.dv) params.dv = views.out_tensor(out[next]);
    return params;
  }
  static std::vector<bool> has_rows(const State&, const Arrays& in) {
    return std::vector<bool>(in.size(), true);
  }
  // Makes y and logsumexp again instead of reading them, so that derivatives see all of q, k, v.
  static Arrays composed(const State& state, const Arrays& in, mx::Stream s) {
    const auto y = [&](const Arrays& v) { return Arrays{composed_attention(v, state.options, s)}; };
    std::vector<int> argnums;
    if (state.wanted.dq) argnums.push_back(0);
    if (state.wanted.dk) argnums.push_back(1);
    if (state.wanted.dv) argnums.push_back(2);
    return detail::vjp_in(y, {in[1], in[2], in[3]}, {in[0]}, argnums);
  }
};

// Inputs: q, k, v. Outputs: y, and logsumexp for backward, which no caller sees.
struct FusedAttention {
  struct State {
    AttentionOptions options;
    bool operator==(const State& other) const { return equal(options, other.options); }
  };
  using Params = AttentionForward;
  static constexpr const char* kName = "GraftAttention";
  static constexpr Pass kPass = Pass::kForward;
  static constexpr auto kRun = attention_forward;
  static constexpr bool kBatchJoinsFirst = true;

  static Outputs outputs(const State&, const Arrays& in) {
    return {{in[0].shape(), logsumexp_shape(in[0])}, {in[0].dtype(), mx::float32}};
  }
  static Params params(const State& state, Views& views, const Arrays& in, const Arrays& out) {
    Params params;
    params.q = views.tensor(in[0]);
    params.k = views.tensor(in[1]);
    params.v = views.tensor(in[2]);
    params.options = state.options;
    params.y = views.out_tensor(out[0]);
    params.logsumexp = views.out_tensor(out[1]);
    return params;
  }
  static std::vector<bool> has_rows(const State&, const Arrays&) { return {true, true, true}; }

  static Arrays composed(const State& state, const Arrays& in, mx::Stream s) {
    return {composed_attention(in, state.options, s),
            mx::zeros(logsumexp_shape(in[0]), mx::float32, s)};
  }

  static Arrays gradients(const detail::Gradients<State>& call) {
    const Arrays inputs{call.cotangents[0], call.primals[0], call.primals[1],
                        call.primals[2],    call.outputs[0], call.outputs[1]};
    const FusedAttentionBackward::State wanted{call.state.options,
                                               {call.asked(0), call.asked(1), call.asked(2)}};
    const Support support = FusedNode<FusedAttentionBackward>::supported(wanted, inputs, call.s);
    if (!support) return call.composed(support, 1, call.argnums);
    return FusedNode<FusedAttentionBackward>::make(wanted, inputs, call.caller, call.s);
  }
};

void check(const Arrays& inputs, const AttentionOptions& options) {
  const mx::array& q = inputs[0];
  const mx::array& k = inputs[1];
  if (q.ndim() != 4) {
    detail::reject(kOp, "q", "(B, T_q, heads, d)", detail::shape_string(q.shape()));
  }
  if (k.ndim() != 4 || k.shape(0) != q.shape(0) || k.shape(3) != q.shape(3)) {
    detail::reject(kOp, "k", "(B, T_kv, kv_heads, d) with q's B and d",
                   detail::shape_string(k.shape()));
  }
  if (k.shape(2) == 0 || q.shape(2) % k.shape(2) != 0) {
    detail::reject(kOp, "k", "a number of heads that divides " + std::to_string(q.shape(2)),
                   std::to_string(k.shape(2)));
  }
  if (options.causal && k.shape(1) < q.shape(1)) {
    detail::reject(kOp, "k", "at least as many tokens as q", detail::shape_string(k.shape()));
  }
  detail::expect_shape(kOp, "v", inputs[2], k.shape());
  detail::expect_scale(kOp, options.scale);
  for (const auto& x : inputs) {
    if (x.dtype() != q.dtype() || !mx::issubdtype(x.dtype(), mx::floating)) {
      detail::reject(kOp, "q, k, v", "one floating-point dtype", "others");
    }
  }
}

}  // namespace

mx::array attention(const mx::array& q, const mx::array& k, const mx::array& v,
                    const AttentionOptions& options, mx::StreamOrDevice device) {
  const Arrays inputs{q, k, v};
  check(inputs, options);
  return detail::fused_or_composed<FusedAttention>({options}, inputs, {kOp},
                                                   mx::to_stream(device))[0];
}

}  // namespace graft::mlx
