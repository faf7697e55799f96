#pragma once

#include <cstddef>

#include "graft/context.h"
#include "graft/export.h"
#include "graft/supports.h"
#include "graft/tensor_view.h"
#include "graft/weight.h"

namespace graft {

/// y = x·Wᵀ + bias: a base layer without an adapter, and what LoRA's overhead is measured against.
///
/// M, in_features and out_features may each be zero. x and y are float32, bfloat16 or (on GPUs)
/// float16, each on its own; the weight's dtype decides how products multiply (see Weight). Outputs
/// must not overlap inputs.
struct LinearForward {
  ConstTensorView x;     ///< (M, in_features), any strides.
  Weight weight;         ///< (out_features, in_features).
  ConstTensorView bias;  ///< (out_features), optional, float32, bfloat16 or (GPUs) float16.
  TensorView y;          ///< (M, out_features), rows dense, overwritten.
};

/// dx = dy·W.
struct LinearBackward {
  ConstTensorView dy;  ///< (M, out_features), any strides.
  Weight weight;       ///< (out_features, in_features); if packed, for kForwardAndBackward.
  TensorView dx;       ///< (M, in_features), rows dense, overwritten.
};

/// @{
/// Whether such a call can run here, and if not, why.
GRAFT_EXPORT Support supports(const LinearForward& params);
GRAFT_EXPORT Support supports(const LinearBackward& params);
/// @}

/// @{
/// Bytes of scratch that such a call takes from a context of so many threads. Reads no tensor.
/// Throws Error for a call that is not supported.
GRAFT_EXPORT std::size_t scratch_bytes(const LinearForward& params, int threads = num_threads());
GRAFT_EXPORT std::size_t scratch_bytes(const LinearBackward& params, int threads = num_threads());
/// @}

/// @{
/// Throws Error; on an error no output is touched.
GRAFT_EXPORT void linear_forward(Context& context, const LinearForward& params);
GRAFT_EXPORT void linear_backward(Context& context, const LinearBackward& params);
/// @}

}  // namespace graft
