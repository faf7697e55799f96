#pragma once

#include <mlx/mlx.h>

#include <optional>

#include "graft/export.h"

namespace graft::mlx {

namespace mx = ::mlx::core;

/// y = (x − mean(x)) / √(mean((x − mean(x))²) + eps) ∘ weight + bias over the last dimension, x
/// (..., features), weight and bias (features) or absent, y in x's dtype; see graft/layer_norm.h.
///
/// Fused on GPUs and on the CPU; composed from MLX ops where there is no kernel, as for float16 on
/// the CPU. Throws std::invalid_argument if shapes do not fit, an array is not floating-point, or
/// eps is negative.
GRAFT_EXPORT mx::array layer_norm(const mx::array& x, const std::optional<mx::array>& weight,
                                  const std::optional<mx::array>& bias, float eps = 1e-5f,
                                  mx::StreamOrDevice s = {});

}  // namespace graft::mlx
