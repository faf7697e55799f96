#pragma once

#include <mlx/mlx.h>

#include "graft/export.h"

namespace graft::mlx {

namespace mx = ::mlx::core;

/// y = softmax(scale · x) over the last dimension, x (..., features), in x's dtype; see
/// graft/softmax.h.
///
/// MLX has a softmax of its own, which an unqualified call finds too: say graft::mlx::softmax.
/// Fused on GPUs and on the CPU; composed from MLX ops, in float32, where there is no kernel, as
/// for float16 on the CPU. Throws std::invalid_argument if x is a scalar or not floating-point, or
/// scale is not positive.
GRAFT_EXPORT mx::array softmax(const mx::array& x, float scale = 1.0f, mx::StreamOrDevice s = {});

}  // namespace graft::mlx
