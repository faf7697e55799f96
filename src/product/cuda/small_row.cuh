#pragma once

#include "product/cuda/small.cuh"

namespace graft::cuda::small {

// One row a block, float32. Nothing goes through shared memory but the warps' parts of h:
// neighbouring lanes have four ranks each, then neighbours along K, so that a warp reads a stretch
// of A:
//
//     thread + 256·i  =  k · (rank / 4) + quad       k < 512, all loads under way at once
//
// kWhole: A is dense, its rank is kRank, and K and N are whole 512s.
template <int kRank, bool kWhole>
__device__ void make_row(const SmallArgs& args, float (&partial)[kRowWarps][kRank],
                         float (&h_shared)[kRank]) {
  constexpr int kQuads = kRank / 4, kAtOnce = 512 * kQuads / kRowThreads;
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / 32, quad = thread % kQuads, first_k = thread / kQuads;
  const std::int64_t row = blockIdx.x;
  const float* const x = static_cast<const float*>(args.x) + row * args.x_stride;
  const int my_col = 2 * thread;

  float2 columns[kRank];  // of B
  const auto load_b = [&](int col) {
    const float* const b = static_cast<const float*>(args.b);
    const auto load = [&](auto vectors) {
#pragma unroll
      for (int r = 0; r < kRank; ++r) {
        const bool here = kWhole || r < args.rank;
        const float* const from = b + (here ? r : 0) * args.b_row + col * args.b_col;
        if constexpr (vectors.value) {
          columns[r] = *reinterpret_cast<const float2*>(from);
        } else {
          columns[r] = make_float2(from[0], from[args.b_col]);
        }
        if (!here) columns[r] = make_float2(0, 0);
      }
    };
    if constexpr (kWhole) {
      load(std::true_type{});
    } else {
      choose(args.b_vectors, load);
    }
  };

  float sums[4] = {};
  const auto multiply = [&](auto vectors) {
    const bool mine = kWhole || 4 * quad < args.rank;
    [[maybe_unused]] const float* const a =
        static_cast<const float*>(args.a) + (mine ? 4 * quad * args.a_col : 0);
    for (int begin = first_k; begin < args.depth; begin += 512) {
      float values[kAtOnce];
      float4 ranks[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int k = begin + i * (kRowThreads / kQuads);
        if constexpr (kWhole) {
          values[i] = x[k];
          ranks[i] = static_cast<const float4*>(args.a)[k * kQuads + quad];
        } else {
          const bool here = mine && k < args.depth;
          const float* const from = a + (here ? k : 0) * args.a_row;
          const float value = x[here ? k : 0];
          values[i] = here ? value : 0.0f;
          if constexpr (vectors.value) {
            ranks[i] = *reinterpret_cast<const float4*>(from);
          } else {
            ranks[i] =
                make_float4(from[0], from[args.a_col], from[2 * args.a_col], from[3 * args.a_col]);
          }
          if (!here) ranks[i] = make_float4(0, 0, 0, 0);
        }
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        sums[0] = fmaf(values[i], ranks[i].x, sums[0]);
        sums[1] = fmaf(values[i], ranks[i].y, sums[1]);
        sums[2] = fmaf(values[i], ranks[i].z, sums[2]);
        sums[3] = fmaf(values[i], ranks[i].w, sums[3]);
      }
    }
  };
  if (kWhole || my_col < args.cols) load_b(my_col);
  if constexpr (kWhole) {
    multiply(std::true_type{});
  } else {
    choose(args.a_vectors, multiply);
  }
  const int kept = sum_over_lanes(sums, kQuads);
  partial[warp][4 * quad + kept] = sums[0];  // of lanes that have the same, the same
  __syncthreads();
  if (thread < kRank) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kRowWarps; ++i) sum += partial[i][thread];
    h_shared[thread] = args.scaling * sum;
    if (args.h != nullptr && thread < args.rank) args.h[row * args.rank + thread] = sum;
  }
  __syncthreads();

  float* const y = static_cast<float*>(args.y) + row * args.y_stride;
  for (int col = my_col; col < args.cols; col += 2 * kRowThreads) {
    if (col != my_col) load_b(col);
    float2 result = make_float2(0, 0);
#pragma unroll
    for (int r = 0; r < kRank; r += 4) {
      const float4 four = *reinterpret_cast<const float4*>(&h_shared[r]);
      const float h[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        result.x = fmaf(h[i], columns[r + i].x, result.x);
        result.y = fmaf(h[i], columns[r + i].y, result.y);
      }
    }
    auto* const to = reinterpret_cast<float2*>(y + col);
    if (args.accumulate) result.x += to->x, result.y += to->y;
    *to = result;
  }
}

template <int kRank, bool kWhole>
__global__ void __launch_bounds__(kRowThreads, 1)
    small_row(const __grid_constant__ SmallArgs args) {
  __shared__ __align__(16) float partial[kRowWarps][kRank];
  __shared__ __align__(16) float h[kRank];
  wait_for_earlier_kernels();
  make_row<kRank, kWhole>(args, partial, h);
}

}  // namespace graft::cuda::small
