#pragma once

#include "graft/rope.h"

namespace graft::cpu {

/// Checked parameters only.
void rope(Context& context, const Rope& params);

}  // namespace graft::cpu
