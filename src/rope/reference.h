#pragma once

#include "graft/rope.h"

namespace graft::reference {

/// What rope must compute.
void rope(const Rope& params);

}  // namespace graft::reference
