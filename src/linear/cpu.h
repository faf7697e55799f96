#pragma once

#include <cstddef>

#include "graft/linear.h"

namespace graft::cpu {

void linear_forward(Context& context, const LinearForward& params);
void linear_backward(Context& context, const LinearBackward& params);
std::size_t scratch_bytes(const LinearForward& params, int threads);
std::size_t scratch_bytes(const LinearBackward& params, int threads);

}  // namespace graft::cpu
