#pragma once

#include "graft/layer_norm.h"

namespace graft::cpu {

/// Checked parameters only.
void layer_norm_forward(Context& context, const LayerNormForward& params);
void layer_norm_backward(Context& context, const LayerNormBackward& params);

}  // namespace graft::cpu
