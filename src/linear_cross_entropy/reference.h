#pragma once

#include "graft/linear_cross_entropy.h"

namespace graft::reference {

/// What linear_cross_entropy must compute, one scalar at a time in double. The weight must be
/// plain; dx may have any dtype.
void linear_cross_entropy(const LinearCrossEntropy& params);

}  // namespace graft::reference
