#pragma once

#include "backend/cuda/mma.cuh"
#include "backend/cuda/philox.cuh"
#include "product/cuda/ampere_operand.cuh"
#include "product/cuda/ampere_shrink.cuh"

// out (rank, cols) = scaling · coefficientsᵀ · drop(matrix): the gradients of A and B.
//
// A block takes 128 columns, at most 64 ranks and a share of the rows, 64 at a time. Matrix rows
// go to shared memory by cp.async, three stages deep; a dropped element is zeroed there by the
// thread that copied it. Coefficients, float32 and few, pass through registers: each is split into
// a high and a low half of the multiply type, high + low = s · coefficient to twice its bits, so
// that the sums are as good as float32's of the same matrix. The shares' sums are added in order by
// `sum_shares`: the same bits every time.
//
// Both operands lie with the summed dimension (rows) across: ldmatrix transposes them.

namespace graft::cuda::ampere {

inline constexpr int kOuterCols = 128, kOuterRanks = 64, kOuterRows = 64, kOuterStages = 3;
inline constexpr int kOuterStageBytes = kOuterRows * kOuterCols * 2;
inline constexpr int kOuterHalfStride = kOuterRanks * 2 + 16;  // of a row of coefficients, bytes
inline constexpr int kOuterHalfBytes = kOuterRows * kOuterHalfStride;
/// Stages, and two buffers of coefficients, high and low.
inline constexpr std::size_t kOuterSharedBytes =
    kOuterStages * kOuterStageBytes + 4 * kOuterHalfBytes;

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
  std::int64_t share_rows = 0;  ///< Rows of a share, whole kOuterRows.
  unsigned shares = 0;
};

template <class T>
struct OuterBlock {
  const OuterJob& a;
  unsigned char* shared;
  std::uint32_t base;
  std::int64_t col0, row_begin, row_end;
  int rank0, ranks;  // of this block

  __device__ __forceinline__ std::uint32_t place(int r, int c) const {
    return r * kOuterCols * 2 + ((c ^ (r & 7)) * 16);
  }

  /// This thread's chunks of a stage: rows tid / 16 + 16p, chunk tid % 16.
  __device__ __forceinline__ void copy(std::int64_t row, int stage) const {
    const int r = static_cast<int>(threadIdx.x) / 16, c = static_cast<int>(threadIdx.x) % 16;
    const std::int64_t col = col0 + 8 * c;
#pragma unroll
    for (int p = 0; p < kOuterRows / 16; ++p) {
      const std::int64_t i = row + r + 16 * p;
      const bool exists = col < a.cols && i < row_end;
      const std::uint32_t to = stage * kOuterStageBytes + place(r + 16 * p, c);
      if (a.matrix.copies) {
        const T* data = static_cast<const T*>(a.matrix.data);
        copy_async(base + to, data + i * a.matrix.outer + col, exists);
      } else {
        *reinterpret_cast<uint4*>(shared + to) =
            exists ? gather8<T>(a.matrix, i, col, a.cols) : uint4{0, 0, 0, 0};
      }
    }
  }

  __device__ __forceinline__ void drop(std::int64_t row, int stage, const Masks& masks) const {
    const int r = static_cast<int>(threadIdx.x) / 16, c = static_cast<int>(threadIdx.x) % 16;
#pragma unroll 1
    for (int p = 0; p < kOuterRows / 16; ++p) {
      uint4* chunk =
          reinterpret_cast<uint4*>(shared + stage * kOuterStageBytes + place(r + 16 * p, c));
      const uint4 bits = *chunk;
      const std::int64_t first = (row + r + 16 * p) * a.cols + col0 + 8 * c;
      *chunk = drop8<T>(bits, static_cast<std::uint64_t>(first), masks);
    }
  }

  static constexpr int kCarried = kOuterRows * kOuterRanks / 256;

  // A thread carries rank tid % 16 of each sixteen, of rows tid / 16 + 16p.
  __device__ __forceinline__ void fetch(std::int64_t row, float (&carried)[kCarried]) const {
    const int r = static_cast<int>(threadIdx.x) / 16, rank = static_cast<int>(threadIdx.x) % 16;
#pragma unroll
    for (int t = 0; t < kOuterRanks / 16; ++t) {
      if (16 * t >= ranks) break;
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        const std::int64_t i = row + r + 16 * p;
        const int of = rank0 + 16 * t + rank;
        carried[4 * t + p] =
            i < row_end && of < a.rank ? a.scaling * a.coefficients[i * a.rank + of] : 0.0f;
      }
    }
  }
  __device__ __forceinline__ void store(int buffer, const float (&carried)[kCarried]) const {
    const int r = static_cast<int>(threadIdx.x) / 16, rank = static_cast<int>(threadIdx.x) % 16;
    unsigned char* high = shared + kOuterStages * kOuterStageBytes + buffer * 2 * kOuterHalfBytes;
#pragma unroll
    for (int t = 0; t < kOuterRanks / 16; ++t) {
      if (16 * t >= ranks) break;
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        T* at = reinterpret_cast<T*>(high + (r + 16 * p) * kOuterHalfStride) + 16 * t + rank;
        const T value = from_float<T>(carried[4 * t + p]);
        *at = value;
        at[kOuterHalfBytes / 2] = from_float<T>(carried[4 * t + p] - to_float(value));
      }
    }
  }

  __device__ __forceinline__ void multiply(int stage, int buffer,
                                           float (&sums)[kOuterRanks / 16][2][4]) const {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const std::uint32_t high =
        base + kOuterStages * kOuterStageBytes + buffer * 2 * kOuterHalfBytes;
    // Of coefficients [row][rank]: (rows 0-7, ranks 0-7), (0-7, 8-15), (8-15, 0-7), (8-15, 8-15)
    const std::uint32_t mine =
        high + (lane % 8 + lane / 16 * 8) * kOuterHalfStride + lane / 8 % 2 * 16;
#pragma unroll
    for (int i = 0; i < kOuterRows / 16; ++i) {
      std::uint32_t b[2][2];
      ldmatrix_trans(
          base + stage * kOuterStageBytes + place(16 * i + lane % 16, 2 * warp + lane / 16),
          b[0][0], b[0][1], b[1][0], b[1][1]);
#pragma unroll
      for (int t = 0; t < kOuterRanks / 16; ++t) {
        if (16 * t >= ranks) break;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          std::uint32_t c[4];
          ldmatrix_trans(mine + half * kOuterHalfBytes + 16 * i * kOuterHalfStride + 32 * t, c[0],
                         c[1], c[2], c[3]);
          mma<T>(sums[t][0], c, b[0]);
          mma<T>(sums[t][1], c, b[1]);
        }
      }
    }
  }
};

template <class T>
__global__ void __launch_bounds__(256, 2) outer(const __grid_constant__ OuterArgs args) {
  extern __shared__ __align__(128) unsigned char shared[];
  wait_for_kernel_before();
  const bool second = blockIdx.x >= args.jobs[0].blocks;
  const OuterJob& a = args.jobs[second ? 1 : 0];
  unsigned rest = blockIdx.x - (second ? args.jobs[0].blocks : 0);
  const unsigned share_index = rest % args.shares;
  rest /= args.shares;
  const unsigned cols = static_cast<unsigned>((a.cols + kOuterCols - 1) / kOuterCols);
  OuterBlock<T> block{a, shared, shared_address(shared)};
  block.col0 = std::int64_t{rest % cols} * kOuterCols;
  block.row_begin = std::int64_t{share_index} * args.share_rows;
  block.row_end = min(block.row_begin + args.share_rows, args.m);
  block.rank0 = static_cast<int>(rest / cols) * kOuterRanks;
  block.ranks = min(a.ranks - block.rank0, kOuterRanks);
  const Masks masks = a.dropout.any() ? a.dropout.masks() : Masks{};

  float sums[kOuterRanks / 16][2][4] = {};
  // Coefficients are on their way two stages ahead, as the matrix is.
  float carried[2][OuterBlock<T>::kCarried];
  for (int s = 0; s < kOuterStages - 1; ++s) {
    block.copy(block.row_begin + s * kOuterRows, s);
    commit_copies();
  }
  block.fetch(block.row_begin, carried[0]);
  block.fetch(block.row_begin + kOuterRows, carried[1]);
  int stage = 0, free = kOuterStages - 1;
  for (std::int64_t row0 = block.row_begin; row0 < block.row_end; row0 += 2 * kOuterRows) {
#pragma unroll
    for (int buffer = 0; buffer < 2; ++buffer) {
      const std::int64_t row = row0 + buffer * kOuterRows;
      if (row >= block.row_end) break;
      wait_copies<kOuterStages - 2>();
      if (a.dropout.any()) block.drop(row, stage, masks);
      block.store(buffer, carried[buffer]);
      __syncthreads();  // all see this stage, and are done with the one before
      block.copy(row + (kOuterStages - 1) * kOuterRows, free);
      commit_copies();
      block.fetch(row + 2 * kOuterRows, carried[buffer]);
      block.multiply(stage, buffer, sums);
      free = stage;
      stage = stage + 1 == kOuterStages ? 0 : stage + 1;
    }
  }
  wait_copies<0>();

  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int g = lane / 4, q = lane % 4;
  float* share = a.shares + std::int64_t{share_index} * a.ranks * a.cols;
#pragma unroll
  for (int t = 0; t < kOuterRanks / 16; ++t) {
    if (16 * t >= block.ranks) break;
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const std::int64_t rank = block.rank0 + 16 * t + g + (e / 2 % 2) * 8;
      const std::int64_t col = block.col0 + 16 * warp + e / 4 * 8 + 2 * q + e % 2;
      if (col < a.cols) share[rank * a.cols + col] = sums[t][e / 4][e % 4];
    }
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
