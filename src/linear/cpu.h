#pragma once

#include "graft/linear.h"

namespace graft::cpu {

void linear_forward(Context& context, const LinearForward& params);
void linear_backward(Context& context, const LinearBackward& params);

}  // namespace graft::cpu
