#pragma once

#include <cstdint>

#include "graft/tensor_view.h"

namespace graft::cpu {

/// Small operations on one row, computed in float32, once for each instruction set.
struct RowKernels {
  /// to = from, `count` elements of `dtype` (float32 or bfloat16).
  void (*load)(const void* from, DType dtype, std::int64_t count, float* to);
  /// to = factor · from, rounded to `dtype`.
  void (*store)(const float* from, float factor, std::int64_t count, void* to, DType dtype);
  /// to += factor · from.
  void (*add)(const float* from, float factor, std::int64_t count, float* to);
  float (*dot)(const float* a, const float* b, std::int64_t count);
  /// Turns pair i by the angle with cosine `cos[i]` and sine `sign · sin[i]`, in place.
  void (*turn)(float* row, std::int64_t pairs, const float* cos, const float* sin, float sign,
               bool interleaved);
};

/// The kernels for the instruction set in use.
const RowKernels& row_kernels();

}  // namespace graft::cpu
