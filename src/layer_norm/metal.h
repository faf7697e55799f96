#pragma once

#include "graft/layer_norm.h"
#include "graft/metal.h"

namespace graft::metal {

/// Forward one launch, a row a simdgroup or a threadgroup; backward another for dx, and for dweight
/// and dbias one over blocks of rows and one each over blocks. Checked and supported parameters
/// only.
Plan layer_norm_forward(const LayerNormForward& params);
Plan layer_norm_backward(const LayerNormBackward& params);

}  // namespace graft::metal
