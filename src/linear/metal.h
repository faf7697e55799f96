#pragma once

#include "graft/linear.h"
#include "graft/metal.h"

namespace graft::metal {

/// Whether there are kernels for a call on Metal: float32, float16 or bfloat16; matrices without
/// gaps; a plain weight; sizes that fit an int.
Support supports(const LinearForward& params);
Support supports(const LinearBackward& params);

/// One launch. Checked and supported parameters only.
Plan linear_forward(const LinearForward& params);
Plan linear_backward(const LinearBackward& params);

}  // namespace graft::metal
