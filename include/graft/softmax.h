#pragma once

#include "graft/context.h"
#include "graft/supports.h"
#include "graft/tensor_view.h"

namespace graft {

/// y = exp(z − max(z)) / Σ exp(z − max(z)) a row, with z = scale · x: the maximum is taken out so
/// that no exponential overflows (Milakov and Gimelshein, arXiv:1805.02867).
///
/// All matrices are (M, features), float32, float16 or bfloat16, all of one dtype, rows dense,
/// computed in float32. Where x is −∞, y is 0; a row of nothing but −∞, or with a NaN or +∞ in it,
/// is all NaN, as MLX has it. On the CPU there are kernels for float32 and bfloat16; those for
/// Metal are in graft/metal_softmax.h.
struct SoftmaxForward {
  ConstTensorView x;   ///< (M, features).
  float scale = 1.0f;  ///< Positive; attention's 1 / √d.
  TensorView y;        ///< Overwritten; may be x itself, no other overlap.
};

/// dx = scale · y ∘ (dy − Σ(dy ∘ y)), the sum over a row.
struct SoftmaxBackward {
  ConstTensorView dy;  ///< (M, features).
  ConstTensorView y;   ///< As forward wrote it.
  float scale = 1.0f;  ///< As given to forward.
  TensorView dx;       ///< Overwritten; may be dy or y themselves, no other overlap.
};

/// @{
/// Whether such a call can run here, and if not, why.
Support supports(const SoftmaxForward& params);
Support supports(const SoftmaxBackward& params);
/// @}

/// @{
/// Each throws Error; on an error no output is touched. Results do not depend on the number of
/// threads.
void softmax_forward(Context& context, const SoftmaxForward& params);
void softmax_backward(Context& context, const SoftmaxBackward& params);
/// @}

}  // namespace graft
