#pragma once

#include <cstdint>

#include "backend/cuda/element.cuh"
#include "backend/cuda/mma.cuh"

// What the kernels of small.cu share.

namespace graft::cuda::small {

constexpr int kMostRank = 32;

// A block has 8 warps. Each has 64 of K in the first product, and 64 columns of y in the second.
constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kSlice = 64;                // of K, or of N, that is a warp's
constexpr int kAtOnce = kWarps * kSlice;  // of K, or of N, that is a block's

struct SmallArgs {
  const void *x, *a, *b;
  void* y;
  float* h;  // null: not wanted
  std::int64_t rows, x_stride, y_stride;
  std::int64_t a_row, a_col, b_row, b_col;
  int depth, cols, rank;
  int block_cols;  // of y that a block makes, at most kAtOnce
  float scaling;
  bool accumulate;
  bool a_vectors, b_vectors;  // neighbours along a row of A or B are one load or copy
  bool a_along, b_along;      // four neighbours along a column are
  bool float_adapter;         // A and B are float32, whatever x is
};

/// Asks for a block's share of some bytes that all blocks read, 32 KB of them.
__device__ inline void prefetch_share(const void* from, int bytes) {
  const int at = static_cast<int>(blockIdx.x * kThreads + threadIdx.x) * 128;
  if (at < bytes) prefetch(static_cast<const char*>(from) + at);
}

}  // namespace graft::cuda::small
