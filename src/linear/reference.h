#pragma once

#include "graft/linear.h"

namespace graft::reference {

/// What linear_forward and linear_backward must compute, one scalar at a time, accumulated in
/// double. The weight must be plain.
void linear_forward(const LinearForward& params);
void linear_backward(const LinearBackward& params);

}  // namespace graft::reference
