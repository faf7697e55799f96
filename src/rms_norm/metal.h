#pragma once

#include "graft/metal.h"
#include "graft/rms_norm.h"

namespace graft::metal {

/// Whether there are kernels for a call on Metal: float32, float16 or bfloat16, rows without gaps,
/// sizes that fit an int; backward, rstd as forward wrote it.
Support supports(const RmsNormForward& params);
Support supports(const RmsNormBackward& params);

/// Forward one launch, a row a simdgroup or a threadgroup; backward another for ds, and for dweight
/// one over blocks of rows and one over blocks. Checked and supported parameters only.
Plan rms_norm_forward(const RmsNormForward& params);
Plan rms_norm_backward(const RmsNormBackward& params);

}  // namespace graft::metal
