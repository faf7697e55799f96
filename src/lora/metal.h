#pragma once

#include "graft/lora.h"
#include "graft/metal.h"

namespace graft::metal {

/// Checked and supported parameters only.
///
/// lora_delta is one launch, for y and h; its backward one for dx and g = dy·Bᵀ, or for g alone,
/// and one each for da and db. lora_linear is one launch or, if h is made before, two; its backward
/// g, dx, da and db, each a launch if it is wanted.
Plan lora_delta_forward(const LoraDeltaForward& params);
Plan lora_delta_backward(const LoraDeltaBackward& params);
Plan lora_linear_forward(const LoraLinearForward& params);
Plan lora_linear_backward(const LoraLinearBackward& params);

}  // namespace graft::metal
