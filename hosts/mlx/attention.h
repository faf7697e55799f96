#pragma once

#include <mlx/mlx.h>

#include "graft/attention.h"
#include "graft/export.h"

namespace graft::mlx {

namespace mx = ::mlx::core;

/// y = softmax(scale · q·kᵀ) · v for each sequence and head, with causal mask, grouped heads and
/// rotary embedding as `options` say; see graft/attention.h.
///
/// q (B, T_q, heads, d), k and v (B, T_kv, kv_heads, d), as projections leave them: y is
/// (B, T_q, heads, d). The options, `rotary.position` among them, are constants of the graph. Fused
/// for float32 and bfloat16 where `graft::supports` says so, otherwise composed from MLX ops.
/// Throws std::invalid_argument if shapes do not fit, or scale is not above 0.
GRAFT_EXPORT mx::array attention(const mx::array& q, const mx::array& k, const mx::array& v,
                                 const AttentionOptions& options = {}, mx::StreamOrDevice s = {});

}  // namespace graft::mlx
