#pragma once

#include "graft/attention.h"

namespace graft::test {

/// Attention and its gradients composed of plain operations, each of which rounds its result to the
/// tensors' dtype and sums in float32: what the fused kernels' error is held against.
void plain_attention(const AttentionForward& forward, const AttentionBackward& backward);

}  // namespace graft::test
