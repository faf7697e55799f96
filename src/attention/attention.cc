#include "graft/attention.h"

#include <string>

#include "backend/table.h"

namespace graft {

namespace {

constexpr const char* kForward = "attention";
constexpr const char* kBackward = "attention_backward";

// A tensor of heads beside q: shape as given, dtype and device of q, last axis dense.
void check_heads(const Check& check, const char* name, const ConstTensorView& view,
                 std::initializer_list<std::int64_t> shape, const ConstTensorView& q) {
  check.shape(name, view, shape);
  check.dtype(name, view, {q.dtype()});
  check.device(name, view, q.device());
  check.last_axis_dense(name, view);
}

void check_gradient(const Check& check, const char* name, const TensorView& view,
                    const ConstTensorView& like) {
  if (!view.present()) return;
  check_heads(check, name, view, {like.dim(0), like.dim(1), like.dim(2), like.dim(3)}, like);
  check.writable(name, view);
}

void check_inputs(const Check& check, const ConstTensorView& q, const ConstTensorView& k,
                  const ConstTensorView& v, const AttentionOptions& options) {
  check.rank("q", q, 4);
  check.last_axis_dense("q", q);
  check.rank("k", k, 4);
  const std::int64_t queries = q.dim(1), heads = q.dim(2), d = q.dim(3);
  const std::int64_t keys = k.dim(1), kv_heads = k.dim(2);
  check_heads(check, "k", k, {q.dim(0), keys, kv_heads, d}, q);
  check_heads(check, "v", v, {q.dim(0), keys, kv_heads, d}, q);
  if (kv_heads > 0 ? heads % kv_heads != 0 : heads != 0) {
    check.fail("k: expected a number of heads that divides q's " + std::to_string(heads) +
               ", got " + std::to_string(kv_heads));
  }
  check.scale(options.scale);
  if ((options.causal || options.rotary.enabled) && keys < queries) {
    check.fail("k: expected at least as many keys as queries, got " + std::to_string(keys) +
               " for " + std::to_string(queries));
  }
  if (options.rotary.enabled) check.rotary(options.rotary);
}

void check_logsumexp(const Check& check, const ConstTensorView& logsumexp,
                     const ConstTensorView& q) {
  check.shape("logsumexp", logsumexp, {q.dim(0), q.dim(2), q.dim(1)});
  check.dtype("logsumexp", logsumexp, {DType::kFloat32});
  check.device("logsumexp", logsumexp, q.device());
  check.dense("logsumexp", logsumexp);
}

}  // namespace

Support supports(const AttentionForward& params) { return supports_on(params.q.device(), params); }
Support supports(const AttentionBackward& params) { return supports_on(params.q.device(), params); }

std::size_t scratch_bytes(const AttentionForward& params, int threads) {
  return scratch_bytes_on(params.q.device(), kForward, params, threads);
}

std::size_t scratch_bytes(const AttentionBackward& params, int threads) {
  return scratch_bytes_on(params.q.device(), kBackward, params, threads);
}

void attention_forward(Context& context, const AttentionForward& params) {
  const Check check(kForward);
  const ConstTensorView& q = params.q;
  check_inputs(check, q, params.k, params.v, params.options);
  check_heads(check, "y", params.y, {q.dim(0), q.dim(1), q.dim(2), q.dim(3)}, q);
  check.writable("y", params.y);
  if (params.logsumexp.present()) check_logsumexp(check, params.logsumexp, q);
  run_on(q.device(), kForward, context, params);
}

void attention_backward(Context& context, const AttentionBackward& params) {
  const Check check(kBackward);
  const ConstTensorView& q = params.q;
  check_inputs(check, q, params.k, params.v, params.options);
  check_heads(check, "dy", params.dy, {q.dim(0), q.dim(1), q.dim(2), q.dim(3)}, q);
  check_heads(check, "y", params.y, {q.dim(0), q.dim(1), q.dim(2), q.dim(3)}, q);
  check_logsumexp(check, params.logsumexp, q);
  check_gradient(check, "dq", params.dq, q);
  check_gradient(check, "dk", params.dk, params.k);
  check_gradient(check, "dv", params.dv, params.v);
  run_on(q.device(), kBackward, context, params);
}

}  // namespace graft
