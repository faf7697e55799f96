#pragma once

#include "graft/metal.h"
#include "graft/softmax.h"

namespace graft::metal {

/// Whether there are kernels for a call on Metal: float32, float16 or bfloat16, rows without gaps,
/// sizes that fit an int.
Support supports(const SoftmaxForward& params);
Support supports(const SoftmaxBackward& params);

/// One launch, a row a simdgroup or a threadgroup. Checked and supported parameters only.
Plan softmax_forward(const SoftmaxForward& params);
Plan softmax_backward(const SoftmaxBackward& params);

}  // namespace graft::metal
