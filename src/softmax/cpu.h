#pragma once

#include "graft/softmax.h"

namespace graft::cpu {

/// Checked parameters only.
void softmax_forward(Context& context, const SoftmaxForward& params);
void softmax_backward(const SoftmaxBackward& params);

}  // namespace graft::cpu
