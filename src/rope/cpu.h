#pragma once

#include <cstddef>

#include "graft/rope.h"

namespace graft::cpu {

/// Checked parameters only.
void rope(Context& context, const Rope& params);
std::size_t scratch_bytes(const Rope& params, int threads);

}  // namespace graft::cpu
