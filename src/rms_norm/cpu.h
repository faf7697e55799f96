#pragma once

#include <cstddef>

#include "graft/rms_norm.h"

namespace graft::cpu {

/// Checked parameters only.
void rms_norm_forward(Context& context, const RmsNormForward& params);
void rms_norm_backward(Context& context, const RmsNormBackward& params);
std::size_t scratch_bytes(const RmsNormForward& params, int threads);
std::size_t scratch_bytes(const RmsNormBackward& params, int threads);

}  // namespace graft::cpu
