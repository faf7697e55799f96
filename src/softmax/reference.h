#pragma once

#include "graft/softmax.h"

namespace graft::reference {

/// What softmax_forward and softmax_backward must compute, one scalar at a time in double. Every
/// tensor may have any floating-point dtype and any strides.
void softmax_forward(const SoftmaxForward& params);
void softmax_backward(const SoftmaxBackward& params);

}  // namespace graft::reference
