#pragma once

#include "graft/linear_cross_entropy.h"

namespace graft::cpu {

/// Checked parameters only.
void linear_cross_entropy(Context& context, const LinearCrossEntropy& params);

}  // namespace graft::cpu
