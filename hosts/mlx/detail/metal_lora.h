#pragma once

#include "graft/mlx/detail/lora_primitive.h"

// lora_delta by Metal kernels.
namespace graft::mlx::detail {

// Whether there is a kernel for x, A and B; the arrays need not be evaluated.
Support delta_on_metal(const Arrays& inputs);

// y (..., out_features).
mx::array metal_delta(const LoraCall& call, const Arrays& inputs, const Caller& caller,
                      mx::Stream s);

}  // namespace graft::mlx::detail
