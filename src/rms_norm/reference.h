#pragma once

#include "graft/rms_norm.h"

namespace graft::reference {

/// What rms_norm_forward and rms_norm_backward must compute, one scalar at a time in double. The
/// norm is of `sum` as it was stored; rstd is always computed again. y, ds, rstd and dweight may
/// have any dtype.
void rms_norm_forward(const RmsNormForward& params);
void rms_norm_backward(const RmsNormBackward& params);

}  // namespace graft::reference
