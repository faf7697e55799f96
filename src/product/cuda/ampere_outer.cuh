#pragma once

#include "backend/cuda/mma.cuh"
#include "backend/cuda/philox.cuh"
#include "product/cuda/ampere_operand.cuh"
#include "product/cuda/ampere_shrink.cuh"

// out (rank, cols) = scaling · coefficientsᵀ · drop(matrix): the gradients of A and B. Each matrix
// is read once: that is the cost, 67 MB or 16 µs of an H200 for x and dy of 4096 × 4096.
//
// A block takes 128 columns, at most 32 ranks and a share of the rows. It keeps all in registers:
// nothing that it reads is used twice, but coefficients by its two halves, which L1 sees to.
//
//            64 columns      64 columns
//     16  | warp 0        | warp 1        |     A warp's turn: 16 rows of its half, eight blocks of
//     16  | warp 2        | warp 3        |     16 ranks by 8 columns. After it the warp goes on 64
//     16  | warp 4        | warp 5        |     rows below; the four warps of a half add up their
//     16  | warp 6        | warp 7        |     sums in the end.
//
// Rows are what is summed over, and the matrix unit wants two that follow each other in one word.
// Lane 4g + q loads 16 bytes, columns 8g .. 8g + 7, of rows 4q .. 4q + 3, and pairs them by byte
// permutations: word j of a pair of rows belongs to column 8g + j, so that instruction j multiplies
// columns j, 8 + j, 16 + j, …. The sum doesn't care which row is which as long as coefficients
// agree.
//
// Coefficients are float32: each is split into a high and a low half of the multiply type,
// high + low = s · coefficient to twice its bits, so that the sums are as good as float32's of the
// same matrix. The shares' sums are added in order by `sum_shares`: the same bits every time.

namespace graft::cuda::ampere {

inline constexpr int kOuterCols = 128, kOuterRanks = 32;
inline constexpr int kOuterTurn = 16;                ///< Rows of a warp's turn.
inline constexpr int kOuterWarps = 4;                ///< That share the rows of 64 columns.
inline constexpr int kOuterStride = kOuterCols + 4;  ///< Floats of a row of sums in shared memory.

/// One of the products of a launch.
struct OuterJob {
  const float* coefficients = nullptr;  ///< (M, rank), dense.
  Operand matrix;                       ///< (M, cols): outer is a row's stride.
  std::int64_t cols = 0;
  int rank = 0, ranks = 0;
  float scaling = 1.0f;
  DropoutArgs dropout;
  float* shares = nullptr;  ///< (shares, ranks, cols)
  unsigned blocks = 0;      ///< All of its columns, ranks and shares.
};

/// Two products in a launch: neither leaves the device idle while it ends.
struct OuterArgs {
  OuterJob jobs[2];  ///< The second may be of no blocks.
  std::int64_t m = 0;
  std::int64_t share_rows = 0;  ///< Rows of a share.
  unsigned shares = 0;
};

/// What a block works on.
struct OuterPlace {
  std::int64_t col0, row_begin, row_end;
  unsigned share;
  int rank0;
};

/// Coefficients of a turn and sixteen ranks as the matrix unit takes them, and their low halves.
struct OuterCoefficients {
  std::uint32_t high[4], low[4];
};

template <class T>
__device__ __forceinline__ void split2(float first, float second, std::uint32_t& high,
                                       std::uint32_t& low) {
  const T a = from_float<T>(first), b = from_float<T>(second);
  high = pack2<T>(to_float(a), to_float(b));
  low = pack2<T>(first - to_float(a), second - to_float(b));
}

/// A warp's sums over its turns of a share; Tiles of 16 ranks, Unroll turns on their way at once.
template <class T, bool kCopies, int Tiles, int Unroll>
struct OuterWarp {
  using Sums = float[Tiles][8][4];
  const OuterJob& a;
  const OuterPlace& at;
  const Masks& masks;
  std::int64_t col;  // of this lane's chunk
  int g, q;

  __device__ __forceinline__ OuterWarp(const OuterJob& job, const OuterPlace& place,
                                       const Masks& of_job)
      : a(job), at(place), masks(of_job) {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    g = lane / 4, q = lane % 4;
    col = at.col0 + warp % 2 * 64 + 8 * g;
  }

  /// Columns past the last are read from the last, and not stored.
  __device__ __forceinline__ void fetch(std::int64_t row, uint4 (&x)[4]) const {
    const T* from = static_cast<const T*>(a.matrix.data) + (row + 4 * q) * a.matrix.outer +
                    min(col, a.cols - 8);
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      x[r] = __ldg(reinterpret_cast<const uint4*>(from));
      from += a.matrix.outer;
    }
  }
  /// The same of rows that may be past the last, and of any type and strides: zeros there.
  __device__ __forceinline__ void fetch_some(std::int64_t row, uint4 (&x)[4]) const {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const std::int64_t i = row + 4 * q + r;
      x[r] = {0, 0, 0, 0};
      if (i < at.row_end && col < a.cols) {
        x[r] = kCopies ? __ldg(reinterpret_cast<const uint4*>(static_cast<const T*>(a.matrix.data) +
                                                              i * a.matrix.outer + col))
                       : gather8<T>(a.matrix, i, col, a.cols);
      }
    }
  }
  __device__ __forceinline__ void drop(std::int64_t row, uint4 (&x)[4]) const {
    if (!a.dropout.any()) return;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const std::int64_t first = (row + 4 * q + r) * a.cols + col;
      x[r] = drop8<T>(x[r], static_cast<std::uint64_t>(first), masks);
    }
  }
  /// Of ranks rank0 + 16t + g and 8 more, rows 4q .. 4q + 3. Ranks and rows that don't exist are 0.
  template <bool kAll>
  __device__ __forceinline__ void fetch(std::int64_t row, int t, float (&c)[8]) const {
    const int rank = at.rank0 + 16 * t + g;
    const float* from = a.coefficients + (row + 4 * q) * a.rank + rank;
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const bool exists = rank + e / 4 * 8 < a.rank && (kAll || row + 4 * q + e % 4 < at.row_end);
      c[e] = exists ? __ldg(from + e % 4 * a.rank + e / 4 * 8) : 0.0f;
    }
  }
  __device__ __forceinline__ OuterCoefficients split(const float (&c)[8]) const {
    OuterCoefficients result;
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // (g, rows 0, 1), (g + 8, 0, 1), (g, 2, 3), (g + 8, 2, 3)
      const float* two = c + i % 2 * 4 + i / 2 * 2;
      split2<T>(a.scaling * two[0], a.scaling * two[1], result.high[i], result.low[i]);
    }
    return result;
  }
  __device__ __forceinline__ void multiply(const uint4 (&x)[4], const OuterCoefficients (&c)[Tiles],
                                           Sums& sums) const {
    const std::uint32_t words[4][4] = {{x[0].x, x[0].y, x[0].z, x[0].w},
                                       {x[1].x, x[1].y, x[1].z, x[1].w},
                                       {x[2].x, x[2].y, x[2].z, x[2].w},
                                       {x[3].x, x[3].y, x[3].z, x[3].w}};
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const unsigned halves = j % 2 == 0 ? 0x5410u : 0x7632u;  // the low ones, or the high ones
      const std::uint32_t b[2] = {__byte_perm(words[0][j / 2], words[1][j / 2], halves),
                                  __byte_perm(words[2][j / 2], words[3][j / 2], halves)};
#pragma unroll
      for (int t = 0; t < Tiles; ++t) {
        mma<T>(sums[t][j], c[t].high, b);
        mma<T>(sums[t][j], c[t].low, b);
      }
    }
  }

  __device__ __forceinline__ void add_up(Sums& sums) const {
    constexpr int kRound = kOuterWarps * kOuterTurn;  // from a warp's turn to its next
    std::int64_t row = at.row_begin + static_cast<int>(threadIdx.x) / 64 * kOuterTurn;
    if (kCopies && !a.dropout.any()) {  // which would be a call, with sums out of registers
      for (; row + (Unroll - 1) * kRound + kOuterTurn <= at.row_end; row += Unroll * kRound) {
        uint4 x[Unroll][4];
        float c[Unroll][Tiles][8];
#pragma unroll
        for (int u = 0; u < Unroll; ++u) {
          fetch(row + u * kRound, x[u]);
#pragma unroll
          for (int t = 0; t < Tiles; ++t) fetch<true>(row + u * kRound, t, c[u][t]);
        }
#pragma unroll
        for (int u = 0; u < Unroll; ++u) {
          OuterCoefficients halves[Tiles];
#pragma unroll
          for (int t = 0; t < Tiles; ++t) halves[t] = split(c[u][t]);
          multiply(x[u], halves, sums);
        }
      }
    }
#pragma unroll 1
    for (; row < at.row_end; row += kRound) {
      uint4 x[4];
      OuterCoefficients halves[Tiles];
      fetch_some(row, x);
#pragma unroll
      for (int t = 0; t < Tiles; ++t) {
        float c[8];
        fetch<false>(row, t, c);
        halves[t] = split(c);
      }
      drop(row, x);
      multiply(x, halves, sums);
    }
  }
};

/// A block's part of a share: what its warps have, added in order by way of shared memory.
template <class T, bool kCopies, int Tiles, int Unroll>
__device__ __forceinline__ void outer_block(const OuterJob& a, const OuterPlace& at,
                                            const Masks& masks, float* memory) {
  float sums[Tiles][8][4] = {};
  const OuterWarp<T, kCopies, Tiles, Unroll> of_warp(a, at, masks);
  of_warp.add_up(sums);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  float* share = a.shares + std::int64_t{at.share} * a.ranks * a.cols;
#pragma unroll
  for (int t = 0; t < Tiles; ++t) {
    // Lane 4g + q has ranks g and g + 8, and of instruction j columns 16q + j and 16q + 8 + j.
    float* mine = memory + (warp / 2 * 16 + of_warp.g) * kOuterStride + warp % 2 * 64;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      float* to = mine + e / 2 * 8 * kOuterStride + 16 * of_warp.q + e % 2 * 8;
#pragma unroll
      for (int j = 0; j < 8; ++j) to[j] = sums[t][j][e];
    }
    __syncthreads();
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < 16 * kOuterCols; i += 256) {
      const int rank = i / kOuterCols, c = i % kOuterCols;
      float sum = 0.0f;
#pragma unroll
      for (int w = 0; w < kOuterWarps; ++w) sum += memory[(16 * w + rank) * kOuterStride + c];
      const int to = at.rank0 + 16 * t + rank;
      if (at.col0 + c < a.cols && to < a.ranks) share[to * a.cols + at.col0 + c] = sum;
    }
    __syncthreads();
  }
}

template <class T>
__global__ void __launch_bounds__(256, 1) outer(const __grid_constant__ OuterArgs args) {
  __shared__ __align__(16) float memory[kOuterWarps * 16 * kOuterStride];
  wait_for_kernel_before();
  const bool second = blockIdx.x >= args.jobs[0].blocks;
  const OuterJob& a = args.jobs[second ? 1 : 0];
  unsigned rest = blockIdx.x - (second ? args.jobs[0].blocks : 0);
  OuterPlace at;
  at.share = rest % args.shares;
  rest /= args.shares;
  const unsigned cols = static_cast<unsigned>((a.cols + kOuterCols - 1) / kOuterCols);
  at.col0 = std::int64_t{rest % cols} * kOuterCols;
  at.row_begin = std::int64_t{at.share} * args.share_rows;
  at.row_end = min(at.row_begin + args.share_rows, args.m);
  at.rank0 = static_cast<int>(rest / cols) * kOuterRanks;
  const Masks masks = a.dropout.any() ? a.dropout.masks() : Masks{};
  if (!a.matrix.copies) {
    outer_block<T, false, 2, 1>(a, at, masks, memory);
  } else if (a.ranks - at.rank0 <= 16) {
    outer_block<T, true, 1, 4>(a, at, masks, memory);
  } else {
    outer_block<T, true, 2, 2>(a, at, masks, memory);
  }
}

/// What is added up of a product.
struct SumJob {
  const float* shares = nullptr;  ///< (count, ranks, cols)
  std::int64_t cols = 0;
  int rank = 0, ranks = 0;
  DropoutArgs dropout;   ///< Its scale multiplies the sum.
  float* out = nullptr;  ///< (rank, cols)
  std::int64_t rank_stride = 0, col_stride = 0;
};

struct SumArgs {
  SumJob jobs[2];
  std::int64_t count = 0;
};

/// A template, as a header's kernels have to be; of no type.
template <int kThreads>
__global__ void __launch_bounds__(kThreads) sum_shares(const __grid_constant__ SumArgs args) {
  wait_for_kernel_before();
  let_next_kernel_start();
  std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const std::int64_t first = args.jobs[0].rank * args.jobs[0].cols;
  const SumJob& a = args.jobs[i >= first ? 1 : 0];
  if (i >= first) i -= first;
  if (i >= a.rank * a.cols) return;
  const std::int64_t rank = i / a.cols, col = i % a.cols;
  float sum = 0.0f;
#pragma unroll 4
  for (std::int64_t s = 0; s < args.count; ++s) {
    sum += a.shares[(s * a.ranks + rank) * a.cols + col];
  }
  a.out[rank * a.rank_stride + col * a.col_stride] = a.dropout.any() ? a.dropout.scale * sum : sum;
}

}  // namespace graft::cuda::ampere
