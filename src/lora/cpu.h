#pragma once

#include "graft/lora.h"

namespace graft::cpu {

void lora_delta_forward(Context& context, const LoraDeltaForward& params);
void lora_delta_backward(Context& context, const LoraDeltaBackward& params);
void lora_linear_forward(Context& context, const LoraLinearForward& params);
void lora_linear_backward(Context& context, const LoraLinearBackward& params);

}  // namespace graft::cpu
