#pragma once

#include "graft/swiglu.h"

namespace graft::reference {

/// What swiglu_forward and swiglu_backward must compute, one scalar at a time in double.
void swiglu_forward(const SwigluForward& params);
void swiglu_backward(const SwigluBackward& params);

}  // namespace graft::reference
