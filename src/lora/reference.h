#pragma once

#include "graft/lora.h"

namespace graft::reference {

/// What the operations of graft/lora.h must compute, one scalar at a time, accumulated in double.
/// Weights must be plain.
void lora_delta_forward(const LoraDeltaForward& params);
void lora_delta_backward(const LoraDeltaBackward& params);
void lora_linear_forward(const LoraLinearForward& params);
void lora_linear_backward(const LoraLinearBackward& params);
void lora_linear_forward(const LoraSiblingsForward& layers);
void lora_linear_backward(const LoraSiblingsBackward& layers);

}  // namespace graft::reference
