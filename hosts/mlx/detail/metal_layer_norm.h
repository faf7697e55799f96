#pragma once

#include <optional>

#include "graft/mlx/detail/primitive.h"

namespace graft::mlx::detail {

// What a layer norm is called with; arrays need not be evaluated.
struct LayerNormCall {
  mx::array x;
  std::optional<mx::array> weight, bias;
  float eps;
};

// Whether Metal kernels take it.
Support layer_norm_on_metal(const LayerNormCall& call);

// y from Metal kernels; `composed` makes it, in x's dtype, from MLX ops.
mx::array metal_layer_norm(const LayerNormCall& call,
                           const std::function<mx::array(const LayerNormCall&)>& composed,
                           const Caller& caller, mx::Stream s);

}  // namespace graft::mlx::detail
