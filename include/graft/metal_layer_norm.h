#pragma once

#include <cstdint>
#include <optional>

#include "graft/export.h"
#include "graft/metal.h"
#include "graft/supports.h"
#include "graft/tensor_view.h"

namespace graft::metal {

/// What a layer norm is made of, forward and backward; see graft/layer_norm.h.
struct LayerNorm {
  std::int64_t rows = 0;          ///< Of all matrices.
  std::int64_t features = 0;      ///< Their columns, and the sizes of weight and bias.
  DType dtype = DType::kFloat32;  ///< Of all matrices; what is computed is float32.
  std::optional<DType> weight;    ///< Its dtype; none without a weight.
  std::optional<DType> bias;      ///< Its dtype; none without a bias.
};

/// Whether kernels take it: float32, float16 or bfloat16; sizes that fit an int.
GRAFT_EXPORT Support supports(const LayerNorm& call);

/// Inputs: x (..., features), weight and bias (features) if there are such, and eps, float32, 0-d;
/// all row-major. Outputs: y, like x, mean and rstd (...) float32.
///
/// One launch, a row a simdgroup or a threadgroup. Throws Error if not supported; there must be
/// something to do.
GRAFT_EXPORT Call layer_norm_forward(const LayerNorm& call);

/// Inputs: dy and x (..., features), mean and rstd as forward wrote them, and weight if there is
/// one. Output: dx, like x. Otherwise as forward.
GRAFT_EXPORT Call layer_norm_backward(const LayerNorm& call);

/// Inputs: dy and x (rows, features), mean and rstd (rows). Outputs: dweight_blocks and
/// dbias_blocks (row_blocks(rows), features) float32, for add_blocks().
GRAFT_EXPORT Call layer_norm_sums(const LayerNorm& call);

}  // namespace graft::metal
