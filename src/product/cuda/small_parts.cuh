#pragma once

#include "product/cuda/small.cuh"

namespace graft::cuda::small {

// float32, 16 or 32 rows at a time, of any shape, in the matrix units: a float is multiplied in two
// parts (mma.cuh), so that the error is float32's. A warp copies what it multiplies, its 32 of K of
// x and of A, to its own part of shared memory, and waits for no other warp. Then come the sums
// over warps, and s·h in shared memory, in parts; the next rows of x are on their way while a warp
// makes 32 columns of y. Sixteen warps, for what one waits for, others have time for. The order of
// K and of the columns inside a product is free:
//
//     lane 4g + q      x   row g, g + 8      k      2q, 2q + 1 of each 8 of its warp's 32
//                      A   k as x            rank   g of each 8
//                      h   row g, g + 8      ranks  q, q + 4 of each 8
//                      B   ranks as h        cols   4 · (g / 2) + 16 · (g % 2) .. + 3, one a tile
//                      y   row g, g + 8      cols   4q .. + 3, 4q + 16 .. + 3
namespace parts {

// As small.cuh has them.
constexpr int kWarps = 16, kThreads = 32 * kWarps, kSlice = kAtOnce / kWarps;

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kMostRun = 4;  // registers for 32 rows would not do there
#else
constexpr int kMostRun = 8;
#endif

template <int kRun>
struct PartsShared {
  // Rows lie so far apart that what a warp reads at once is in different banks.
  static constexpr int kRows = 4 * kRun, kXLd = kSlice + 8, kXSize = kRows * kXLd;
  static constexpr int kBLd = kSlice + 4;

  int log_tiles, ranks, ld;  // tiles of 8 ranks; ld of A, of sums and of h
  int a_size, b_size;        // of a warp
  int a, b, h, size;         // in floats

  __host__ __device__ explicit PartsShared(int rank)
      : log_tiles(rank <= 8    ? 0
                  : rank <= 16 ? 1
                               : 2),
        ranks(8 << log_tiles),
        ld(ranks + 4),
        a_size(kSlice * ranks),
        b_size(ranks * kBLd),
        a(kWarps * kXSize),
        b(a + kWarps * a_size),
        h(b + kWarps * b_size),
        size(h + 2 * kRows * ld) {}

  // A as [k][rank] and as [rank][k]. Fours lie in another order, so that what is read at once is in
  // different banks.
  static __device__ int a_at(int ranks, int k, int rank) {
    return ((k * ranks + rank) / 4 ^ k / 2 % 4 * 2) * 4 + rank % 4;
  }
  static __device__ int along_at(int rank, int k) {
    return rank * kSlice + (k / 4 ^ rank % 4 * 2) * 4 + k % 4;
  }
};

/// Adds to a warp's sums, over k < end of its x and its A: [k][rank], or [rank][k] if kAlong.
template <int kRun, int kTiles, bool kAlong>
__device__ __forceinline__ void parts_shrink(const float* x, const float* a, int end,
                                             float (&sums)[kRun / 4][4][4]) {
  using Shared = PartsShared<kRun>;
  constexpr int kRanks = 8 * kTiles;
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
  const float* const my_x = x + g * Shared::kXLd + 2 * q;
  // What k and t add to a place in A are whole eights of fours, or bits that they change.
  const int along = Shared::along_at(g, 2 * q),
            at[2] = {Shared::a_at(kRanks, 2 * q, g), Shared::a_at(kRanks, 2 * q + 1, g)};
#pragma unroll(kTiles == 1 ? 4 : 1)
  for (int deep = 0; deep < end; deep += 16) {
    // The matrix units round their sums towards zero: short ones, which are added up as floats are.
    float of_16[kRun / 4][kTiles][4] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int k = deep + 8 * i;
      if (k >= end) break;
      TwoParts left[kRun / 4][4];
#pragma unroll
      for (int m = 0; m < kRun / 4; ++m) {
        // Of rows that are not there, what lies there: their sums are not used.
        const float2 top = *reinterpret_cast<const float2*>(my_x + 16 * m * Shared::kXLd + k),
                     low = *reinterpret_cast<const float2*>(my_x + (16 * m + 8) * Shared::kXLd + k);
        left[m][0] = in_parts(top.x), left[m][1] = in_parts(low.x);
        left[m][2] = in_parts(top.y), left[m][3] = in_parts(low.y);
      }
      constexpr int kPair = kTiles < 2 ? kTiles : 2;  // tiles at once: more would take registers
#pragma unroll
      for (int first = 0; first < kTiles; first += kPair) {
        TwoParts right[kPair][2];
#pragma unroll
        for (int t = 0; t < kPair; ++t) {
          const int bits = 8 * (first + t);
          const float2 two =
              kAlong ? *reinterpret_cast<const float2*>(a + (along ^ k) + bits * kSlice)
                     : make_float2(a[(at[0] ^ bits) + k * kRanks], a[(at[1] ^ bits) + k * kRanks]);
          right[t][0] = in_parts(two.x), right[t][1] = in_parts(two.y);
        }
#pragma unroll
        for (int m = 0; m < kRun / 4; ++m) {
          mma_parts<kPair>(reinterpret_cast<float(&)[kPair][4]>(of_16[m][first]), left[m], right);
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kRun / 4; ++m) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[m][t][e] += of_16[m][t][e];
      }
    }
  }
}

__device__ __forceinline__ void copy16(float* to, const float* from) {
  copy_async(shared_address(to), from, true);
}

template <int kRun>
__global__ void __launch_bounds__(kThreads, 1) small_parts(const __grid_constant__ SmallArgs args) {
  if constexpr (kRun > kMostRun) return;
  using Shared = PartsShared<kRun>;
  constexpr int kRows = Shared::kRows, kXLd = Shared::kXLd;
  extern __shared__ __align__(16) float shared[];
  const Shared at(args.rank);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  float* const x = shared + warp * Shared::kXSize;
  float* const a = shared + at.a + warp * at.a_size;
  float* const b = shared + at.b + warp * at.b_size;
  TwoParts* const h = reinterpret_cast<TwoParts*>(shared + at.h);
  const int step = static_cast<int>(gridDim.x) * kRows, all_rows = static_cast<int>(args.rows);
  const int block_col = static_cast<int>(blockIdx.y) * args.block_cols,
            first_col = block_col + kSlice * warp;
  const int cols = min(args.cols, block_col + args.block_cols);
  const int log_quads = at.log_tiles + 1, quad = lane & ((1 << log_quads) - 1);

  const auto copy_x = [&](int first, int k) {
    const int deep = lane % 8 * 4;
    const float* from =
        static_cast<const float*>(args.x) + (first + lane / 8) * args.x_stride + k + deep;
    float* to = x + lane / 8 * kXLd + deep;
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      if (first + lane / 8 + 4 * i < all_rows) {
        if (k + deep < args.depth) copy16(to + 4 * i * kXLd, from);
      }
      from += 4 * args.x_stride;
    }
  };
  const auto copy_a = [&](int k) {
    const float* const from = static_cast<const float*>(args.a);
    if (args.a_vectors) {
      if (4 * quad >= args.rank) return;
#pragma unroll 2
      for (int row = lane >> log_quads; row < kSlice; row += 32 >> log_quads) {
        if (k + row < args.depth)
          copy16(a + Shared::a_at(at.ranks, row, 4 * quad),
                 from + (k + row) * args.a_row + 4 * quad);
      }
    } else if (args.a_along) {  // [rank][k], as it lies in memory
      const int deep = lane % 8 * 4;
      if (k + deep >= args.depth) return;
#pragma unroll 4
      for (int rank = lane / 8; rank < args.rank; rank += 4) {
        copy16(a + Shared::along_at(rank, deep), from + k + deep + rank * args.a_col);
      }
    } else {
      for (int row = lane; row < min(kSlice, args.depth - k); row += 32) {
#pragma unroll 4
        for (int rank = 0; rank < args.rank; ++rank) {
          a[Shared::a_at(at.ranks, row, rank)] = from[(k + row) * args.a_row + rank * args.a_col];
        }
      }
    }
  };
  const auto copy_b = [&] {
    const float* const from = static_cast<const float*>(args.b);
    for (int i = lane; i < (args.rank % 8 * kSlice); i += 32) {  // zeros up to whole eights
      b[(args.rank + i / kSlice) * Shared::kBLd + i % kSlice] = 0;
    }
    if (args.b_vectors) {
      const int col = lane % 8 * 4;
      if (first_col + col >= cols) return;
#pragma unroll 2
      for (int rank = lane / 8; rank < args.rank; rank += 4) {
        copy16(b + rank * Shared::kBLd + col, from + rank * args.b_row + first_col + col);
      }
    } else if (args.b_along) {
#pragma unroll 8
      for (int i = lane; i < kSlice / 4 * args.rank; i += 32) {
        const int col = i % kSlice, rank = i / kSlice * 4;
        if (first_col + col >= cols) continue;
        const float4 four =
            *reinterpret_cast<const float4*>(from + (first_col + col) * args.b_col + rank);
        float* const to = b + rank * Shared::kBLd + col;
        to[0] = four.x, to[Shared::kBLd] = four.y;
        to[2 * Shared::kBLd] = four.z, to[3 * Shared::kBLd] = four.w;
      }
    } else {
      for (int col = lane; col < min(kSlice, cols - first_col); col += 32) {
#pragma unroll 4
        for (int rank = 0; rank < args.rank; ++rank) {
          b[rank * Shared::kBLd + col] = from[rank * args.b_row + (first_col + col) * args.b_col];
        }
      }
    }
  };
  int first = static_cast<int>(blockIdx.x) * kRows;
  if (blockIdx.y == 0) {
    constexpr int kOfRow = kThreads / kRows;
    const int row = first + thread / kOfRow;
    if (row < all_rows) {
      const float* const from = static_cast<const float*>(args.x) + row * args.x_stride;
      for (int k = thread % kOfRow * 32; k < args.depth; k += kOfRow * 32) prefetch(from + k);
    }
    if (args.a_vectors || args.a_along) prefetch_share(args.a, args.depth * args.rank * 4);
    if (args.b_vectors || args.b_along) prefetch_share(args.b, args.cols * args.rank * 4);
  }
  wait_for_kernel_before();
  let_next_kernel_start();

  const int my_k = kSlice * warp;
  copy_x(first, my_k);
  copy_a(my_k);
  commit_copies();
  copy_b();
  commit_copies();
  wait_copies<1>();
  const int g = lane / 4, q = lane % 4;
  const bool whole = args.depth <= kAtOnce, along = !args.a_vectors && args.a_along;
#pragma unroll 1
  for (; first < all_rows; first += step) {
    const int rows = min(all_rows - first, kRows);
    float sums[kRun / 4][4][4] = {};  // [16 rows][8 ranks]
#pragma unroll 1
    for (int k = my_k; k - my_k < args.depth; k += kAtOnce) {
      if (k > my_k) {
        __syncwarp();
        copy_x(first, k);
      }
      if (!whole && (k > my_k || first >= step)) {
        copy_a(k);
      }
      if (!whole) {
        commit_copies();
        wait_copies<0>();
      }
      __syncwarp();
      const int end = min(kSlice, args.depth - k);
      const auto shrink = [&]<bool kAlong>(std::bool_constant<kAlong>) {
        if (at.log_tiles == 0) return parts_shrink<kRun, 1, kAlong>(x, a, end, sums);
        if (at.log_tiles == 1) return parts_shrink<kRun, 2, kAlong>(x, a, end, sums);
        parts_shrink<kRun, 4, kAlong>(x, a, end, sums);
      };
      if (along) {
        shrink(std::true_type{});
      } else {
        shrink(std::false_type{});
      }
    }
    __syncwarp();
    float* const part = x + g * at.ld + 2 * q;  // [row][rank], of this warp
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      if (8 * t >= at.ranks) break;
#pragma unroll
      for (int m = 0; m < kRun / 4; ++m) {
        float* const to = part + 16 * m * at.ld + 8 * t;
        *reinterpret_cast<float2*>(to) = make_float2(sums[m][t][0], sums[m][t][1]);
        *reinterpret_cast<float2*>(to + 8 * at.ld) = make_float2(sums[m][t][2], sums[m][t][3]);
      }
    }
    __syncthreads();
    for (int i = thread; i < kRows << log_quads; i += kThreads) {
      const int row = i >> log_quads, rank = 4 * quad;
      float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
      for (int j = 0; j < kWarps; ++j) {
        const float4 one =
            *reinterpret_cast<const float4*>(shared + j * Shared::kXSize + row * at.ld + rank);
        sum.x += one.x, sum.y += one.y, sum.z += one.z, sum.w += one.w;
      }
      if (args.h != nullptr && blockIdx.y == 0 && rank < args.rank && row < rows) {
        float* const to = args.h + std::int64_t{first + row} * args.rank + rank;
        to[0] = sum.x, to[1] = sum.y, to[2] = sum.z, to[3] = sum.w;
      }
      const bool is_rank = rank < args.rank;  // else what lay there
      TwoParts* const to = h + row * at.ld + rank;
      to[0] = in_parts(is_rank ? args.scaling * sum.x : 0);
      to[1] = in_parts(is_rank ? args.scaling * sum.y : 0);
      to[2] = in_parts(is_rank ? args.scaling * sum.z : 0);
      to[3] = in_parts(is_rank ? args.scaling * sum.w : 0);
    }
    wait_copies<0>();  // B is here
    __syncthreads();
    if (first + step < all_rows) copy_x(first + step, my_k);
    commit_copies();

    if (first_col < cols) {
      float results[kRun / 4][4][4] = {};  // [16 rows][tile]
      const float* my_b = b + q * Shared::kBLd + g / 2 * 4 + g % 2 * 16;
      const TwoParts* my_h = h + g * at.ld + q;
#pragma unroll 1
      for (int rank = 0; rank < args.rank; rank += 8, my_b += 8 * Shared::kBLd, my_h += 8) {
        TwoParts left[kRun / 4][4];
#pragma unroll
        for (int m = 0; m < kRun / 4; ++m) {
          const TwoParts* const top = my_h + 16 * m * at.ld;
          left[m][0] = top[0], left[m][1] = top[8 * at.ld];
          left[m][2] = top[4], left[m][3] = top[8 * at.ld + 4];
        }
        TwoParts right[4][2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float4 four = *reinterpret_cast<const float4*>(my_b + 4 * i * Shared::kBLd);
          right[0][i] = in_parts(four.x), right[1][i] = in_parts(four.y);
          right[2][i] = in_parts(four.z), right[3][i] = in_parts(four.w);
        }
#pragma unroll
        for (int m = 0; m < kRun / 4; ++m) mma_parts<4>(results[m], left[m], right);
      }
#pragma unroll
      for (int i = 0; i < kRun / 2; ++i) {  // eights of rows
        const int row = g + 8 * i;
        if (row >= rows) break;
        float* const y = static_cast<float*>(args.y) + (first + row) * args.y_stride;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int col = first_col + 4 * q + 16 * j;
          if (col >= cols) break;
          auto* const to = reinterpret_cast<float4*>(y + col);
          const float(&tiles)[4][4] = results[i / 2];
          const int e = i % 2 * 2 + j;
          float4 result = make_float4(tiles[0][e], tiles[1][e], tiles[2][e], tiles[3][e]);
          if (args.accumulate) {
            const float4 before = *to;
            result.x += before.x, result.y += before.y, result.z += before.z, result.w += before.w;
          }
          *to = result;
        }
      }
    }
    wait_copies<0>();
  }
}

}  // namespace parts
}  // namespace graft::cuda::small
