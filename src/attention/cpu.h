#pragma once

#include <cstddef>

#include "graft/attention.h"

namespace graft::cpu {

/// Checked parameters only.
void attention_forward(Context& context, const AttentionForward& params);
void attention_backward(Context& context, const AttentionBackward& params);
std::size_t scratch_bytes(const AttentionForward& params, int threads);
std::size_t scratch_bytes(const AttentionBackward& params, int threads);

}  // namespace graft::cpu
