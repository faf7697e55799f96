#pragma once

#include "graft/swiglu.h"

namespace graft::cpu {

/// Checked parameters only.
void swiglu_forward(const Context& context, const SwigluForward& params);
void swiglu_backward(const Context& context, const SwigluBackward& params);

}  // namespace graft::cpu
