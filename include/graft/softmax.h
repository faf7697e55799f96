#pragma once

#include <cstddef>

#include "graft/context.h"
#include "graft/export.h"
#include "graft/supports.h"
#include "graft/tensor_view.h"

namespace graft {

/// y = exp(z − max(z)) / Σ exp(z − max(z)) a row, with z = scale · x: the maximum is taken out so
/// that no exponential overflows (Milakov and Gimelshein, arXiv:1805.02867).
///
/// All matrices are (M, features), float32, float16 or bfloat16, all of one dtype, rows dense,
/// computed in float32. Where x is −∞, y is 0; a row of nothing but −∞, or with a NaN or +∞ in it,
/// is all NaN, as MLX has it. The CPU has kernels for float32 and bfloat16, CUDA for all three,
/// Metal too (metal::plan in graft/metal.h).
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
GRAFT_EXPORT Support supports(const SoftmaxForward& params);
GRAFT_EXPORT Support supports(const SoftmaxBackward& params);
/// @}

/// @{
/// Bytes of scratch that such a call takes from a context of so many threads. Reads no tensor.
/// Throws Error for a call that is not supported.
GRAFT_EXPORT std::size_t scratch_bytes(const SoftmaxForward& params, int threads = num_threads());
GRAFT_EXPORT std::size_t scratch_bytes(const SoftmaxBackward& params, int threads = num_threads());
/// @}

/// @{
/// Each throws Error; on an error no output is touched. Results do not depend on the number of
/// threads.
GRAFT_EXPORT void softmax_forward(Context& context, const SoftmaxForward& params);
GRAFT_EXPORT void softmax_backward(Context& context, const SoftmaxBackward& params);
/// @}

}  // namespace graft
