#pragma once

#include <cstdint>

namespace graft::cpu {

/// Pieces of softmax over one row of scores z, once for each instruction set. NaN stays NaN.
///
/// Rows lie in scratch with room up to the next multiple of a vector: elements past the row may be
/// read, and become zero where the row itself is written.
struct SoftmaxKernels {
  /// The largest element; −∞ if there is none.
  float (*max)(const float* z, std::int64_t count);
  /// Σ exp(scale·z − shift).
  float (*exp_sum)(const float* z, std::int64_t count, float scale, float shift);
  /// z = exp(scale·z − shift); returns the sum.
  float (*exp)(float* z, std::int64_t count, float scale, float shift);
  /// p = exp(scale·z − shift) in place of z, and dz = scale · p ∘ (dp − delta) in place of dp.
  void (*backward)(float* z, float* dp, std::int64_t count, float scale, float shift, float delta);
};

/// The kernels for the instruction set in use.
const SoftmaxKernels& softmax_kernels();

}  // namespace graft::cpu
