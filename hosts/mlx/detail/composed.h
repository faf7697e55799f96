#pragma once

#include <mlx/mlx.h>

#include "graft/mlx/detail/primitive.h"

namespace graft::mlx::detail {

// The operations from MLX's own ops, for what the kernels do not take. They round where the kernels
// round, so that a model behaves the same either way.

// x·Wᵀ in x's dtype. A bfloat16 weight multiplies x rounded to bfloat16 and sums in float32, as the
// kernels do; a float32 weight multiplies in float32; others as MLX promotes.
mx::array composed_product(const mx::array& x, const mx::array& w, mx::Stream s);

// scaling·(x·A)·B in float32, or in MLX's promotion of the operands if that is not float16.
mx::array composed_delta(const mx::array& x, const mx::array& a, const mx::array& b, float scaling,
                         mx::Stream s);

// Gradients of a frozen weight and bias, in `dtype`: dW = dyᵀ·x, dbias = Σ_rows dy. x and dy may
// have leading dimensions.
mx::array weight_gradient(const mx::array& x, const mx::array& dy, mx::Dtype dtype, mx::Stream s);
mx::array bias_gradient(const mx::array& dy, mx::Dtype dtype, mx::Stream s);

// x flattened to a matrix (rows, last dimension).
mx::array as_matrix(const mx::array& x, mx::Stream s);

mx::array composed_swiglu(const mx::array& gate, const mx::array& up, mx::Stream s);

mx::array composed_linear_cross_entropy(const mx::array& x, const mx::array& w,
                                        const mx::array& targets, int ignore_index, mx::Stream s);

// The weight as an array, unpacked when the graph is evaluated.
mx::array unpacked(const Weight& w, mx::Stream s);

}  // namespace graft::mlx::detail
