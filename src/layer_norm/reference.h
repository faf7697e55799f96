#pragma once

#include "graft/layer_norm.h"

namespace graft::reference {

/// What layer_norm_forward and layer_norm_backward must compute, one scalar at a time in double.
/// The variance is the mean of squared deviations, from a second pass over the row, so that a large
/// mean costs it no digits; mean and rstd are always computed again. Every tensor may have any
/// floating-point dtype, matrices any strides.
void layer_norm_forward(const LayerNormForward& params);
void layer_norm_backward(const LayerNormBackward& params);

}  // namespace graft::reference
