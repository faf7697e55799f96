#pragma once

#include "graft/attention.h"

namespace graft::reference {

/// What attention_forward and attention_backward must compute, one scalar at a time in double.
/// Backward computes y and logsumexp again instead of reading them. Outputs may have any dtype.
void attention_forward(const AttentionForward& params);
void attention_backward(const AttentionBackward& params);

}  // namespace graft::reference
