#pragma once

#include <mlx/mlx.h>

#include <memory>
#include <optional>

#include "graft/packed_weight.h"

namespace graft::mlx {

namespace mx = ::mlx::core;

/// A frozen base weight, packed once, shared by every graph that uses it and safe to use from any
/// number of threads.
using Weight = std::shared_ptr<const PackedWeight>;

/// Packs `w` (out_features, in_features), evaluating it if need be; the array may be dropped
/// afterwards. `dtype`, float32 or bfloat16, decides how products multiply (see PackedWeight);
/// `backward` false halves the memory for weights that no gradient passes through. Throws
/// std::invalid_argument.
Weight pack(const mx::array& w, mx::Dtype dtype = mx::float32, bool backward = true);

/// The array that `w` was packed from, rounded to its dtype. Evaluated lazily, each time.
mx::array unpack(const Weight& w, mx::StreamOrDevice s = {});

/// y = x·Wᵀ + bias, x (..., in_features) float32 or bfloat16, y (..., out_features) in x's dtype.
///
/// Fused where `graft::supports` says so, otherwise composed from MLX ops; `fusion_report` tells.
/// Throws std::invalid_argument if shapes do not fit.
mx::array linear(const mx::array& x, const Weight& w,
                 const std::optional<mx::array>& bias = std::nullopt, mx::StreamOrDevice s = {});

/// The same with a plain weight (out_features, in_features), packed anew each time. Its gradient is
/// composed from MLX ops.
mx::array linear(const mx::array& x, const mx::array& w,
                 const std::optional<mx::array>& bias = std::nullopt, mx::StreamOrDevice s = {});

}  // namespace graft::mlx
