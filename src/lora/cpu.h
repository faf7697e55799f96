#pragma once

#include <cstddef>

#include "graft/lora.h"

namespace graft::cpu {

void lora_delta_forward(Context& context, const LoraDeltaForward& params);
void lora_delta_backward(Context& context, const LoraDeltaBackward& params);
void lora_linear_forward(Context& context, const LoraLinearForward& params);
void lora_linear_backward(Context& context, const LoraLinearBackward& params);
std::size_t scratch_bytes(const LoraDeltaForward& params, int threads);
std::size_t scratch_bytes(const LoraDeltaBackward& params, int threads);
std::size_t scratch_bytes(const LoraLinearForward& params, int threads);
std::size_t scratch_bytes(const LoraLinearBackward& params, int threads);

}  // namespace graft::cpu
