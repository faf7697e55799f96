#pragma once

#include "graft/mlx/detail/lora_primitive.h"

namespace graft::mlx::detail {

// Whether Metal kernels take this call; the arrays need not be evaluated.
Support supports_metal(const LoraCall& call, const Arrays& inputs);

// y, (..., out_features), from Metal kernels.
mx::array metal_lora(const LoraCall& call, const Arrays& inputs, const Caller& caller,
                     mx::Stream s);

}  // namespace graft::mlx::detail
