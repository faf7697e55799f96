#pragma once

#include "checks.h"
#include "graft/rope.h"

namespace graft {

/// theta, position and scaling factor make sense.
void check_rotary(const Check& check, const Rotary& rotary);

}  // namespace graft
