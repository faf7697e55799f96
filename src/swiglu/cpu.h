#pragma once

#include "graft/swiglu.h"

namespace graft::cpu {

/// Checked parameters only.
void swiglu_forward(const SwigluForward& params);
void swiglu_backward(const SwigluBackward& params);

}  // namespace graft::cpu
