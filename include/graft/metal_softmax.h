#pragma once

#include <cstdint>

#include "graft/export.h"
#include "graft/metal.h"
#include "graft/supports.h"
#include "graft/tensor_view.h"

namespace graft::metal {

/// What a softmax over rows is made of, forward and backward; see graft/softmax.h.
struct Softmax {
  std::int64_t rows = 0;          ///< Of all matrices.
  std::int64_t features = 0;      ///< Their columns.
  DType dtype = DType::kFloat32;  ///< Of all matrices; what is computed is float32.
};

/// Whether kernels take it: float32, float16 or bfloat16; sizes that fit an int.
GRAFT_EXPORT Support supports(const Softmax& call);

/// Inputs: x (..., features), row-major, and scale, float32, 0-d. Output: y, like x.
///
/// One launch, a row a simdgroup or a threadgroup. Throws Error if not supported; there must be
/// something to do.
GRAFT_EXPORT Call softmax_forward(const Softmax& call);

/// Inputs: dy and y (..., features), row-major, and scale, float32, 0-d. Output: dx, like y.
/// Otherwise as forward.
GRAFT_EXPORT Call softmax_backward(const Softmax& call);

}  // namespace graft::metal
