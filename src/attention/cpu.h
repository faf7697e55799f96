#pragma once

#include "graft/attention.h"

namespace graft::cpu {

/// Checked parameters only.
void attention_forward(Context& context, const AttentionForward& params);
void attention_backward(Context& context, const AttentionBackward& params);

}  // namespace graft::cpu
