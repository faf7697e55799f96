#pragma once

#include <mlx/mlx.h>

#include "graft/export.h"

namespace graft::mlx {

namespace mx = ::mlx::core;

/// y = silu(gate) ∘ up, both (..., features) of one shape; see graft/swiglu.h.
///
/// Fused for float32 and bfloat16 where `graft::supports` says so, otherwise composed from MLX ops.
/// Throws std::invalid_argument if shapes or dtypes differ.
GRAFT_EXPORT mx::array swiglu(const mx::array& gate, const mx::array& up,
                              mx::StreamOrDevice s = {});

}  // namespace graft::mlx
