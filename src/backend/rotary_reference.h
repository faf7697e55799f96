#pragma once

#include <cstdint>
#include <vector>

#include "graft/rope.h"

namespace graft::reference {

/// Turns one head's elements at `position` in double, or back.
void turn(std::vector<double>& row, const Rotary& rotary, std::int64_t position, bool inverse);

}  // namespace graft::reference
