#pragma once

#include <mlx/mlx.h>

#include <utility>

#include "graft/export.h"

namespace graft::mlx {

namespace mx = ::mlx::core;

/// y = x / √(mean(x²) + eps) ∘ weight over the last dimension, x (..., features), weight
/// (features); see graft/rms_norm.h.
///
/// Fused for float32 and bfloat16 where `graft::supports` says so, and on GPUs for float16 too,
/// otherwise composed from MLX ops.
/// Throws std::invalid_argument if shapes do not fit, or eps is below 0.
GRAFT_EXPORT mx::array rms_norm(const mx::array& x, const mx::array& weight, float eps = 1e-5f,
                                mx::StreamOrDevice s = {});

/// The step between a decoder's blocks in one pass: {rms_norm(sum, weight), sum} with
/// sum = x + residual, both of one shape and dtype.
GRAFT_EXPORT std::pair<mx::array, mx::array> add_rms_norm(const mx::array& x,
                                                          const mx::array& residual,
                                                          const mx::array& weight,
                                                          float eps = 1e-5f,
                                                          mx::StreamOrDevice s = {});

}  // namespace graft::mlx
