#pragma once

#include <cstddef>

#include "graft/linear_cross_entropy.h"

namespace graft::cpu {

/// Checked parameters only.
void linear_cross_entropy(Context& context, const LinearCrossEntropy& params);
std::size_t scratch_bytes(const LinearCrossEntropy& params, int threads);

}  // namespace graft::cpu
