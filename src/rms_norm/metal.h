#pragma once

#include "graft/metal.h"
#include "graft/rms_norm.h"

namespace graft::metal {

/// Forward one launch, a row a simdgroup or a threadgroup; backward another for ds, and for dweight
/// one over blocks of rows and one over blocks. Checked and supported parameters only.
Plan rms_norm_forward(const RmsNormForward& params);
Plan rms_norm_backward(const RmsNormBackward& params);

}  // namespace graft::metal
