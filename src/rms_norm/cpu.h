#pragma once

#include "graft/rms_norm.h"

namespace graft::cpu {

/// Checked parameters only.
void rms_norm_forward(Context& context, const RmsNormForward& params);
void rms_norm_backward(Context& context, const RmsNormBackward& params);

}  // namespace graft::cpu
