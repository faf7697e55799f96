#pragma once

#include <type_traits>

#include "product/cuda/small.cuh"

namespace graft::cuda::small {

// One row or four a block, where A and B are dense, K and N whole 512s, and the rank is 4, 8, 16
// or 32. Operands go from memory straight to registers, all loads under way at once: neighbouring
// lanes have four ranks each, then neighbours along K, so that a warp reads a stretch of A, and two
// neighbouring columns of B:
//
//     thread + 256·i  =  k · (rank / 4) + quad       k < 512
//
// A block lives for a microsecond: it has no time for more than some hundred instructions a thread.

/// Sums each of kCount values over the lanes that differ in the bits from 16 down to `lowest`.
/// While there are two values or more, half of the lanes go on with one half of them, the others
/// with the other. Returns the index of the value that this lane ends with, in values[0]...
template <int kCount>
__device__ int sum_over_lanes(float (&values)[kCount], int lowest) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int first = 0;
#pragma unroll
  for (int step = 0; step < 5; ++step) {
    const int offset = 16 >> step, half = kCount >> (step + 1);
    if (offset < lowest) break;
    if (half > 0) {
      const bool upper = (lane & offset) != 0;
#pragma unroll
      for (int i = 0; i < kCount / 2; ++i) {
        if (i >= half) break;
        const float mine = upper ? values[i + half] : values[i];
        const float theirs = upper ? values[i] : values[i + half];
        values[i] = mine + __shfl_xor_sync(~0u, theirs, offset);
      }
      if (upper) first += half;
    } else {
      values[0] += __shfl_xor_sync(~0u, values[0], offset);
    }
  }
  return first;
}

/// kCount neighbours as they lie in memory: taken apart where they are used, so that nothing waits
/// for a load before the others are under way.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Words {
  using Word = std::conditional_t<sizeof(T) * kCount == 2, std::uint16_t, std::uint32_t>;
  Word words[sizeof(T) * kCount < 4 ? 1 : sizeof(T) * kCount / 4];

  __device__ float at(int i) const {
    if constexpr (sizeof(T) == 4) {
      return __uint_as_float(words[i]);
    } else if constexpr (std::is_same_v<T, __half>) {
      const std::uint32_t word = words[i / 2];
      return __half2float(
          __ushort_as_half(static_cast<unsigned short>(i % 2 == 0 ? word & 0xffff : word >> 16)));
    } else {
      const std::uint32_t word = words[i / 2];
      return __uint_as_float(i % 2 == 0 ? word << 16 : word & 0xffff0000u);
    }
  }
};

template <class T, int kCount>
__device__ __forceinline__ Words<T, kCount> load_words(const T* from) {
  return *reinterpret_cast<const Words<T, kCount>*>(from);
}

template <class T, int kRank, int kRows>
__global__ void __launch_bounds__(kThreads, 1) small_row(const __grid_constant__ SmallArgs args) {
  constexpr int kQuads = kRank / 4, kLoads = 512 * kQuads / kThreads, kStep = kThreads / kQuads;
  __shared__ __align__(16) float x_shared[kRows == 1 ? 1 : 512][kRows];
  __shared__ __align__(16) float parts[kWarps][kRows * kRank];
  __shared__ __align__(16) float h[kRows * kRank];
  const int rank = kRank == 8 ? args.rank : kRank;  // 4 goes with 8
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
  const int quad = thread % kQuads, first_k = thread / kQuads;
  const std::int64_t row = std::int64_t{blockIdx.x} * kRows;
  const int rows = kRows == 1 ? 1 : static_cast<int>(min(args.rows - row, std::int64_t{kRows}));
  const T* const x = static_cast<const T*>(args.x) + row * args.x_stride;
  const T* a = static_cast<const T*>(args.a) + first_k * rank + 4 * quad;
  const T* const b = static_cast<const T*>(args.b) + 2 * thread;
  const bool mine = kRank > 8 || 4 * quad < rank;
  constexpr int kLine = 128 / sizeof(T), kOfRow = kThreads / kRows;
  if (thread % kOfRow * kLine < args.depth && thread / kOfRow < rows) {
    prefetch(x + thread / kOfRow * args.x_stride + thread % kOfRow * kLine);
  }
  prefetch_share(args.a, args.depth * rank * static_cast<int>(sizeof(T)));
  prefetch_share(args.b, args.cols * rank * static_cast<int>(sizeof(T)));
  wait_for_kernel_before();
  let_next_kernel_start();

  float sums[kRows * 4] = {};
  Words<T, 2> columns[kRank] = {};
  const auto load_b = [&](int col) {
#pragma unroll
    for (int r = 0; r < kRank; ++r) {
      if (kRank > 8 || r < rank) columns[r] = load_words<T, 2>(b + r * args.cols + col);
    }
  };
  for (int begin = 0; begin < args.depth; begin += 512) {
    Words<T, 1> values[kRows == 1 ? kLoads : 1], of_rows[2][kRows];
    Words<T, 4> ranks[kLoads] = {};
    if constexpr (kRows > 1) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const T* const from = x + (r < rows ? r : 0) * args.x_stride + begin + thread;
        of_rows[0][r] = load_words<T, 1>(from), of_rows[1][r] = load_words<T, 1>(from + kThreads);
      }
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      if constexpr (kRows == 1) values[i] = load_words<T, 1>(x + begin + first_k + i * kStep);
      if (mine) ranks[i] = load_words<T, 4>(a + i * kStep * rank);
    }
    a += 512 * rank;
    if (begin == 0) load_b(0);
    if constexpr (kRows > 1) {
      if (begin > 0) __syncthreads();
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        Pack<float, kRows> pack;
#pragma unroll
        for (int r = 0; r < kRows; ++r) pack.values[r] = of_rows[i][r].at(0);
        *reinterpret_cast<Pack<float, kRows>*>(x_shared[thread + i * kThreads]) = pack;
      }
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      Pack<float, kRows> value;
      if constexpr (kRows == 1) {
        value.values[0] = values[i].at(0);
      } else {
        value = *reinterpret_cast<const Pack<float, kRows>*>(x_shared[first_k + i * kStep]);
      }
#pragma unroll
      for (int four = 0; four < 4; ++four) {
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          sums[4 * r + four] = fmaf(value.values[r], ranks[i].at(four), sums[4 * r + four]);
        }
      }
    }
  }
  const int kept = sum_over_lanes(sums, kQuads);
  constexpr int kCount = kQuads * kRows * 4 < 32 ? 1 : kQuads * kRows * 4 / 32;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {  // of lanes that have the same, the same
    parts[warp][(kept + i) / 4 * kRank + 4 * quad + (kept + i) % 4] = sums[i];
  }
  __syncthreads();
  if (thread < kRows * kRank) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) sum += parts[i][thread];
    h[thread] = args.scaling * sum;
    const int r = thread / kRank, of_row = thread % kRank;
    if (args.h != nullptr && r < rows && of_row < rank) args.h[(row + r) * rank + of_row] = sum;
  }
  __syncthreads();

  T* const y = static_cast<T*>(args.y) + row * args.y_stride + 2 * thread;
  for (int col = 0; col < args.cols; col += 512) {
    if (col > 0) load_b(col);
    float2 results[kRows] = {};
#pragma unroll
    for (int r = 0; r < kRank; r += 4) {
#pragma unroll
      for (int my = 0; my < kRows; ++my) {
        const float4 four = *reinterpret_cast<const float4*>(&h[my * kRank + r]);
        const float of_row[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          results[my].x = fmaf(of_row[i], columns[r + i].at(0), results[my].x);
          results[my].y = fmaf(of_row[i], columns[r + i].at(1), results[my].y);
        }
      }
    }
#pragma unroll
    for (int my = 0; my < kRows; ++my) {
      if (my >= rows) break;
      auto* const to = reinterpret_cast<Pack<T, 2>*>(y + my * args.y_stride + col);
      if (args.accumulate) {
        const auto before = load_words<T, 2>(y + my * args.y_stride + col);
        results[my].x += before.at(0), results[my].y += before.at(1);
      }
      *to = {from_float<T>(results[my].x), from_float<T>(results[my].y)};
    }
  }
}

}  // namespace graft::cuda::small
