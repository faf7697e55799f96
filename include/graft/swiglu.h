#pragma once

#include <cstddef>

#include "graft/context.h"
#include "graft/export.h"
#include "graft/supports.h"
#include "graft/tensor_view.h"

namespace graft {

/// y = silu(gate) ∘ up, with silu(t) = t / (1 + e^−t) (Shazeer, GLU Variants Improve Transformer,
/// arXiv:2002.05202). All matrices are (M, features), float32 or bfloat16, on CUDA also float16,
/// all of one dtype, rows dense, computed in float32. Outputs may be inputs themselves; no other
/// overlap.
struct SwigluForward {
  ConstTensorView gate;  ///< (M, features).
  ConstTensorView up;    ///< (M, features).
  TensorView y;          ///< (M, features), overwritten.
};

/// dgate = dy ∘ up ∘ silu'(gate), dup = dy ∘ silu(gate); each output is optional and overwritten.
struct SwigluBackward {
  ConstTensorView dy;    ///< (M, features).
  ConstTensorView gate;  ///< As given to forward.
  ConstTensorView up;    ///< As given to forward.
  TensorView dgate;      ///< (M, features).
  TensorView dup;        ///< (M, features).
};

/// @{
/// Whether such a call can run here, and if not, why.
GRAFT_EXPORT Support supports(const SwigluForward& params);
GRAFT_EXPORT Support supports(const SwigluBackward& params);
/// @}

/// @{
/// Bytes of scratch that such a call takes from a context of so many threads. Reads no tensor.
/// Throws Error for a call that is not supported.
GRAFT_EXPORT std::size_t scratch_bytes(const SwigluForward& params, int threads = num_threads());
GRAFT_EXPORT std::size_t scratch_bytes(const SwigluBackward& params, int threads = num_threads());
/// @}

/// @{
/// Each throws Error; on an error no output is touched.
GRAFT_EXPORT void swiglu_forward(Context& context, const SwigluForward& params);
GRAFT_EXPORT void swiglu_backward(Context& context, const SwigluBackward& params);
/// @}

}  // namespace graft
