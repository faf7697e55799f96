#pragma once

#include "graft/layer_norm.h"
#include "graft/metal.h"

namespace graft::metal {

/// Whether there are kernels for a call on Metal: float32, float16 or bfloat16, rows without gaps,
/// sizes that fit an int; backward, mean and rstd as forward wrote them.
Support supports(const LayerNormForward& params);
Support supports(const LayerNormBackward& params);

/// Forward one launch, a row a simdgroup or a threadgroup; backward another for dx, and for dweight
/// and dbias one over blocks of rows and one each over blocks. Checked and supported parameters
/// only.
Plan layer_norm_forward(const LayerNormForward& params);
Plan layer_norm_backward(const LayerNormBackward& params);

}  // namespace graft::metal
