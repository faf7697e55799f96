#pragma once

#include "graft/linear.h"
#include "graft/metal.h"

namespace graft::metal {

/// One launch. Checked and supported parameters only.
Plan linear_forward(const LinearForward& params);
Plan linear_backward(const LinearBackward& params);

}  // namespace graft::metal
