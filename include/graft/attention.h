#pragma once

#include <cstddef>

#include "graft/context.h"
#include "graft/export.h"
#include "graft/rope.h"
#include "graft/supports.h"
#include "graft/tensor_view.h"

namespace graft {

/// Largest head dimension that the kernels take; it must be a multiple of 8.
inline constexpr std::int64_t kMaxHeadDim = 256;

/// What attention does besides its tensors; the same for forward and backward.
struct AttentionOptions {
  float scale = 1.0f;  ///< Positive, usually 1 / √d.
  /// Query i sees keys j ≤ i + (T_kv − T_q), so the last query sees all: T_kv = T_q in training,
  /// T_kv > T_q when keys are cached. If false, every query sees every key.
  bool causal = true;
  /// If enabled, q and k are turned on their way in and their gradients turned back on their way
  /// out. Key j is at `position + j`, query i at `position + (T_kv − T_q) + i`; cached keys are
  /// therefore kept unturned.
  Rotary rotary;
};

/// y = softmax(scale · q·kᵀ) · v for each sequence and head. Scores exist for a few queries of a
/// head at a time and are computed again in backward (Dao, FlashAttention-2, arXiv:2307.08691).
/// Query head h reads key and value head h / (heads / kv_heads) (Ainslie et al., GQA,
/// arXiv:2305.13245).
///
/// All tensors but logsumexp are float32 or bfloat16, all of one dtype, and computed in float32.
/// Strides are free except that the last axis has stride 1, so that the (B·T, heads·d) output of a
/// projection is taken as it lies. Outputs must not overlap inputs.
struct AttentionForward {
  ConstTensorView q;  ///< (B, T_q, heads, d).
  ConstTensorView
      k;  ///< (B, T_kv, kv_heads, d), heads a multiple of kv_heads; T_kv ≥ T_q if causal.
  ConstTensorView v;         ///< (B, T_kv, kv_heads, d).
  AttentionOptions options;  ///< Scale, mask and rotary embedding.
  TensorView y;              ///< (B, T_q, heads, d), overwritten.
  /// (B, heads, T_q) float32, dense, optional, overwritten: log Σ_j exp(score_ij), which backward
  /// needs. −∞ for a query that sees no key.
  TensorView logsumexp;
};

/// Gradients of attention; each output is optional and overwritten. Scores are computed again from
/// q, k and logsumexp.
struct AttentionBackward {
  ConstTensorView dy;         ///< (B, T_q, heads, d).
  ConstTensorView q;          ///< As given to forward.
  ConstTensorView k;          ///< As given to forward.
  ConstTensorView v;          ///< As given to forward.
  ConstTensorView y;          ///< As forward wrote it.
  ConstTensorView logsumexp;  ///< As forward wrote it.
  AttentionOptions options;   ///< As given to forward.
  TensorView dq;              ///< (B, T_q, heads, d).
  TensorView dk;              ///< (B, T_kv, kv_heads, d), summed over the query heads that read it.
  TensorView dv;              ///< (B, T_kv, kv_heads, d), likewise.
};

/// @{
/// Whether such a call can run here, and if not, why.
GRAFT_EXPORT Support supports(const AttentionForward& params);
GRAFT_EXPORT Support supports(const AttentionBackward& params);
/// @}

/// @{
/// Bytes of scratch that such a call takes from a context of so many threads. Reads no tensor.
/// Throws Error for a call that is not supported.
GRAFT_EXPORT std::size_t scratch_bytes(const AttentionForward& params, int threads = num_threads());
GRAFT_EXPORT std::size_t scratch_bytes(const AttentionBackward& params,
                                       int threads = num_threads());
/// @}

/// @{
/// Each throws Error; on an error no output is touched. Results do not depend on the number of
/// threads.
GRAFT_EXPORT void attention_forward(Context& context, const AttentionForward& params);
GRAFT_EXPORT void attention_backward(Context& context, const AttentionBackward& params);
/// @}

}  // namespace graft
