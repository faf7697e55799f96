#pragma once

#include "product/cuda/small.cuh"
#include "product/cuda/small_row.cuh"

namespace graft::cuda::small {

// The gradients of a small pair, both in one launch, and a second one that adds up their parts:
//
//     dA^T = s * g^T x        dB = s * h^T dy        out (rank, cols) = s * c^T (rank, M) * matrix
//     (M, cols)
//
// A block has 128 columns of one of them, 16 ranks and some rows; its warps take rows in turns, a
// lane four columns:
//
//     lane: sums[16][4] += c[row][16] x matrix[row][4]
//
// Of the matrix, a lane has four rows under way at once; c of 512 rows lies in shared
// memory, where all lanes read the same of it. The warps' sums are added there too, eight ranks at
// a time, in order.
constexpr int kOuterCols = 128, kOuterRanks = 16, kOuterRows = 512;

struct OuterSide {
  const void* matrix;
  const float* coefficients;
  float* out;
  std::int64_t stride, out_row, out_col;
  int cols, blocks;
  float scaling;
};

struct OuterArgs {
  OuterSide sides[2];
  int rows, rank, split_rows, splits;
  float* parts;  // [split][rank][column of all blocks]; null: there is one split
};

/// Writes four neighbours of a side's sums.
__device__ inline void store_outer(const OuterArgs& args, int block, int rank, int col,
                                   const float4& sum) {
  const bool second = block >= args.sides[0].blocks;
  const OuterSide side = second ? args.sides[1] : args.sides[0];
  col += (second ? block - args.sides[0].blocks : block) * kOuterCols;
  if (col >= side.cols) return;
  float* const to = side.out + rank * side.out_row + col * side.out_col;
  to[0] = side.scaling * sum.x, to[side.out_col] = side.scaling * sum.y;
  to[2 * side.out_col] = side.scaling * sum.z, to[3 * side.out_col] = side.scaling * sum.w;
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2) small_outer(const __grid_constant__ OuterArgs args) {
  __shared__ __align__(16) union {
    float coefficients[kOuterRows][kOuterRanks];
    float sums_of_warps[kWarps][kOuterRanks / 2][kOuterCols];
  } shared;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int block = static_cast<int>(blockIdx.x),
            first_rank = static_cast<int>(blockIdx.z) * kOuterRanks;
  const bool second = block >= args.sides[0].blocks;
  const OuterSide side = second ? args.sides[1] : args.sides[0];
  const int col = (second ? block - args.sides[0].blocks : block) * kOuterCols + 4 * lane;
  const int begin = static_cast<int>(blockIdx.y) * args.split_rows,
            end = min(begin + args.split_rows, args.rows);
  const int ranks = min(args.rank - first_rank, kOuterRanks);
  wait_for_earlier_kernels();
  let_next_kernel_start();

  float sums[kOuterRanks][4] = {};
  const T* const from = static_cast<const T*>(side.matrix) + (col < side.cols ? col : 0);
  for (int chunk = begin; chunk < end; chunk += kOuterRows) {
    if (chunk > begin) __syncthreads();
    const int rows = min(end - chunk, kOuterRows);
    // Zeros for ranks that are not there, and for rows up to the end of a batch.
    constexpr int kBatch = 4, kAtATime = kWarps * kBatch;
    const int padded = (rows + kAtATime - 1) / kAtATime * kAtATime;
    for (int i = thread; i < padded * (kOuterRanks / 4); i += kThreads) {
      const int row = i / (kOuterRanks / 4), rank = i % (kOuterRanks / 4) * 4;
      float4 four = make_float4(0, 0, 0, 0);
      if (row < rows && rank < ranks) {
        four = *reinterpret_cast<const float4*>(
            side.coefficients + std::int64_t{chunk + row} * args.rank + first_rank + rank);
      }
      *reinterpret_cast<float4*>(&shared.coefficients[row][rank]) = four;
    }
    __syncthreads();
    const T* at = from + (chunk + warp) * side.stride;
    const std::int64_t step = kWarps * side.stride;
#pragma unroll 1
    for (int row = warp; row < rows; row += kAtATime) {
      Words<T, 4> values[kBatch];
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        values[j] = {};
        if (row + j * kWarps < rows) values[j] = load_words<T, 4>(at);
        at += step;
      }
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
#pragma unroll
        for (int i = 0; i < kOuterRanks; i += 4) {
          const float4 four =
              *reinterpret_cast<const float4*>(&shared.coefficients[row + j * kWarps][i]);
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const float value = values[j].at(e);
            sums[i][e] = fmaf(four.x, value, sums[i][e]);
            sums[i + 1][e] = fmaf(four.y, value, sums[i + 1][e]);
            sums[i + 2][e] = fmaf(four.z, value, sums[i + 2][e]);
            sums[i + 3][e] = fmaf(four.w, value, sums[i + 3][e]);
          }
        }
      }
    }
  }
  __syncthreads();
#pragma unroll
  for (int half = 0; half < kOuterRanks; half += kOuterRanks / 2) {
    if (half > 0) __syncthreads();
#pragma unroll
    for (int i = 0; i < kOuterRanks / 2; ++i) {
      *reinterpret_cast<float4*>(&shared.sums_of_warps[warp][i][4 * lane]) =
          make_float4(sums[half + i][0], sums[half + i][1], sums[half + i][2], sums[half + i][3]);
    }
    __syncthreads();
    float4 sum = make_float4(0, 0, 0, 0);  // of rank `warp`, one of eight, and this lane's columns
#pragma unroll
    for (int i = 0; i < kWarps; ++i) {
      const float4 one = *reinterpret_cast<const float4*>(&shared.sums_of_warps[i][warp][4 * lane]);
      sum.x += one.x, sum.y += one.y, sum.z += one.z, sum.w += one.w;
    }
    const int rank = first_rank + half + warp;
    if (rank >= args.rank) continue;
    if (args.parts == nullptr) {
      store_outer(args, block, rank, 4 * lane, sum);
    } else {
      const std::int64_t width = std::int64_t{gridDim.x} * kOuterCols;
      *reinterpret_cast<float4*>(args.parts +
                                 (std::int64_t{blockIdx.y} * args.rank + rank) * width +
                                 block * kOuterCols + 4 * lane) = sum;
    }
  }
}

/// The sum of the parts, a rank and 128 columns a block: its warps take parts in turns.
__global__ void __launch_bounds__(kThreads) sum_outer(const __grid_constant__ OuterArgs args) {
  __shared__ __align__(16) float sums_of_warps[kWarps][kOuterCols];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int block = static_cast<int>(blockIdx.x), rank = static_cast<int>(blockIdx.y);
  wait_for_earlier_kernels();
  let_next_kernel_start();
  const std::int64_t width = std::int64_t{gridDim.x} * kOuterCols;
  const float* const from = args.parts + rank * width + block * kOuterCols + 4 * lane;
  float4 sum = make_float4(0, 0, 0, 0);
  const auto add = [&](const float4& one) {
    sum.x += one.x, sum.y += one.y, sum.z += one.z, sum.w += one.w;
  };
#pragma unroll 4
  for (int split = warp; split < args.splits; split += kWarps) {
    add(*reinterpret_cast<const float4*>(from + split * args.rank * width));
  }
  *reinterpret_cast<float4*>(&sums_of_warps[warp][4 * lane]) = sum;
  __syncthreads();
  if (warp > 0) return;
#pragma unroll
  for (int i = 1; i < kWarps; ++i) {
    add(*reinterpret_cast<const float4*>(&sums_of_warps[i][4 * lane]));
  }
  store_outer(args, block, rank, 4 * lane, sum);
}

}  // namespace graft::cuda::small
