#pragma once

#include "graft/metal.h"
#include "graft/softmax.h"

namespace graft::metal {

/// One launch, a row a simdgroup or a threadgroup. Checked and supported parameters only.
Plan softmax_forward(const SoftmaxForward& params);
Plan softmax_backward(const SoftmaxBackward& params);

}  // namespace graft::metal
