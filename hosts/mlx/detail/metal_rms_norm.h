#pragma once

#include "graft/mlx/detail/primitive.h"

namespace graft::mlx::detail {

// Whether Metal kernels take the norm of x, weight and perhaps residual; they need not be
// evaluated.
Support rms_norm_on_metal(const Arrays& inputs);

// {y} of x and weight, or {y, sum} of x, weight and residual, from Metal kernels. `composed` makes
// the same from MLX ops, perhaps in wider dtypes than x's.
Arrays metal_rms_norm(const Arrays& inputs, float eps, const ArraysFunction& composed,
                      const Caller& caller, mx::Stream s);

}  // namespace graft::mlx::detail
