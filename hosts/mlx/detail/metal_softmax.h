#pragma once

#include "graft/mlx/detail/primitive.h"

namespace graft::mlx::detail {

// Whether Metal kernels take the softmax of x; it need not be evaluated.
Support softmax_on_metal(const mx::array& x);

// The softmax of scale · x from Metal kernels; `composed` makes it, of x, from MLX ops.
mx::array metal_softmax(const mx::array& x, float scale, const ArraysFunction& composed,
                        const Caller& caller, mx::Stream s);

}  // namespace graft::mlx::detail
