#pragma once

#include <mlx/mlx.h>

#include <optional>

#include "graft/export.h"
#include "graft/mlx/weight.h"

namespace graft::mlx {

/// y = x·Wᵀ + bias, x (..., in_features) float32 or bfloat16, y (..., out_features) in x's dtype.
///
/// Fused where `graft::supports` says so, otherwise composed from MLX ops; `fusion_report` tells.
/// Throws std::invalid_argument if shapes do not fit.
GRAFT_EXPORT mx::array linear(const mx::array& x, const Weight& w,
                              const std::optional<mx::array>& bias = std::nullopt,
                              mx::StreamOrDevice s = {});

/// The same with a plain weight (out_features, in_features), packed anew each time. Its gradient is
/// composed from MLX ops.
GRAFT_EXPORT mx::array linear(const mx::array& x, const mx::array& w,
                              const std::optional<mx::array>& bias = std::nullopt,
                              mx::StreamOrDevice s = {});

}  // namespace graft::mlx
