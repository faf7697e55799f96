#pragma once

#include "graft/context.h"
#include "graft/supports.h"
#include "graft/tensor_view.h"
#include "graft/weight.h"

namespace graft {

/// y = x·Wᵀ + bias: a base layer without an adapter, and what LoRA's overhead is measured against.
///
/// M, in_features and out_features may each be zero. x and y are float32 or bfloat16, each on its
/// own; the weight's dtype decides how products multiply (see Weight). Outputs must not
/// overlap inputs.
struct LinearForward {
  ConstTensorView x;     ///< (M, in_features), any strides.
  Weight weight;         ///< (out_features, in_features).
  ConstTensorView bias;  ///< (out_features), optional, float32 or bfloat16.
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
Support supports(const LinearForward& params);
Support supports(const LinearBackward& params);
/// @}

/// @{
/// Throws Error; on an error no output is touched.
void linear_forward(Context& context, const LinearForward& params);
void linear_backward(Context& context, const LinearBackward& params);
/// @}

}  // namespace graft
