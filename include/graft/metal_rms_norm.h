#pragma once

#include <cstdint>

#include "graft/export.h"
#include "graft/metal.h"
#include "graft/supports.h"
#include "graft/tensor_view.h"

namespace graft::metal {

/// What an RMS norm is made of, forward and backward; see graft/rms_norm.h.
struct RmsNorm {
  std::int64_t rows = 0;           ///< Of all matrices.
  std::int64_t features = 0;       ///< Their columns, and the weight's size.
  DType dtype = DType::kFloat32;   ///< Of all matrices; what is computed is float32.
  DType weight = DType::kFloat32;  ///< Of the weight.
  bool residual = false;           ///< s = x + residual, not x.
};

/// Whether kernels take it: float32, float16 or bfloat16; sizes that fit an int.
GRAFT_EXPORT Support supports(const RmsNorm& call);

/// Inputs: x (..., features), weight (features), with residual that one, like x, and eps, float32,
/// 0-d; all row-major. Outputs: y, like x, with residual the sum, like x, and rstd (...) float32.
///
/// One launch, a row a simdgroup or a threadgroup. Throws Error if not supported; there must be
/// something to do.
GRAFT_EXPORT Call rms_norm_forward(const RmsNorm& call);

/// Inputs: dy and s (..., features), weight, rstd as forward wrote it, and with residual dsum, like
/// dy. Output: ds, like s. Otherwise as forward.
GRAFT_EXPORT Call rms_norm_backward(const RmsNorm& call);

/// Inputs: dy and s (rows, features) and rstd (rows). Output: dweight_blocks (row_blocks(rows),
/// features) float32, for add_blocks().
GRAFT_EXPORT Call rms_norm_dweight(const RmsNorm& call);

}  // namespace graft::metal
