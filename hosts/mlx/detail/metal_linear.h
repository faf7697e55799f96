#pragma once

#include "graft/mlx/detail/linear_primitive.h"
#include "graft/mlx/detail/lora_primitive.h"

// linear and lora_linear by Metal kernels.
namespace graft::mlx::detail {

// Whether there are kernels for a call; the arrays need not be evaluated.
Support linear_on_metal(const LinearCall& call, const Arrays& inputs);
Support lora_linear_on_metal(const LoraCall& call, const Arrays& inputs);

// y (..., out_features).
mx::array metal_linear(const LinearCall& call, const Arrays& inputs, const Caller& caller,
                       mx::Stream s);
mx::array metal_lora_linear(const LoraCall& call, const Arrays& inputs, const Caller& caller,
                            mx::Stream s);

}  // namespace graft::mlx::detail
