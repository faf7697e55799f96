#pragma once

#include "product/cuda/small.cuh"
#include "product/cuda/small_outer.cuh"
#include "product/cuda/small_row.cuh"

namespace graft::cuda::small {

// The gradients of a pair in float32 where rows are many, by fused multiply-adds, which are faster
// there than small_outer.cuh; and a second launch that adds up their parts:
//
//     dAᵀ = s·gᵀ·x        dB = s·hᵀ·dy        out (rank, cols) = s · cᵀ (rank, M) · matrix (M,
//     cols)
//
// A block has 256 columns of one of them, 16 ranks and some rows; its warps take rows in turns, a
// lane four columns of each 128:
//
//     sums[16][2][4] += c[row][16] · matrix[row][2][4]
//
// Of the matrix, a lane has the next four rows under way while it multiplies four; c of 512 rows
// lies in shared memory, where all lanes read the same of it: 4 loads for 128 multiply-adds. The
// warps' sums are added there too, four ranks at a time, in order.
constexpr int kLongCols = 256, kLongRanks = 16, kLongRows = 512;
constexpr int kLongTurn = 4;  // ranks that go through shared memory at once
static_assert(kLongTurn * kLongCols == 4 * kThreads && kLongCols == kThreads);

__global__ void __launch_bounds__(kThreads, 1) long_outer(const __grid_constant__ OuterArgs args) {
  __shared__ __align__(16) union {
    float coefficients[kLongRows][kLongRanks];
    float sums_of_warps[kWarps][kLongTurn][kLongCols];
  } shared;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int block = static_cast<int>(blockIdx.x),
            first_rank = static_cast<int>(blockIdx.z) * kLongRanks;
  const bool second = block >= args.sides[0].blocks;
  const OuterSide side = second ? args.sides[1] : args.sides[0];
  const int col = (second ? block - args.sides[0].blocks : block) * kLongCols + 4 * lane;
  const int begin = static_cast<int>(blockIdx.y) * args.split_rows,
            end = min(begin + args.split_rows, args.rows);
  const int ranks = min(args.rank - first_rank, kLongRanks);
  // All of the block's part of the matrix is asked for at once.
  constexpr int kLine = 128 / sizeof(float), kLines = kLongCols / kLine;
  const int my_line = thread % kLines * kLine, line_col = col - 4 * lane + my_line;
  if (line_col < side.cols && first_rank == 0) {
    const float* const line = static_cast<const float*>(side.matrix) + line_col;
    for (int row = begin + thread / kLines; row < end; row += kThreads / kLines) {
      prefetch(line + row * side.stride);
    }
  }
  const bool here[2] = {col < side.cols, col + kLongCols / 2 < side.cols};
  constexpr int kBatch = 4, kAtATime = kWarps * kBatch;
  const float* at = static_cast<const float*>(side.matrix) + (begin + warp) * side.stride + col;
  const std::int64_t step = kWarps * side.stride;
  Words<float, 4> next[kBatch][2];
  const auto load = [&](int row) {
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        next[j][half] = {};
        if (row + j * kWarps < end && here[half]) {
          next[j][half] = load_words<float, 4>(at + half * (kLongCols / 2));
        }
      }
      at += step;
    }
  };
  // The matrix is older than the kernel before this one, which has waited for what made it. Its c
  // may not be.
  load(begin + warp);
  wait_for_kernel_before();
  let_next_kernel_start();

  float sums[kLongRanks][2][4] = {};  // columns of two stretches of 128
  for (int chunk = begin; chunk < end; chunk += kLongRows) {
    if (chunk > begin) __syncthreads();
    const int rows = min(end - chunk, kLongRows);
    // Zeros for ranks that are not there, and for rows up to the end of a batch.
    const int padded = (rows + kAtATime - 1) / kAtATime * kAtATime;
    for (int i = thread; i < padded * (kLongRanks / 4); i += kThreads) {
      const int row = i / (kLongRanks / 4), rank = i % (kLongRanks / 4) * 4;
      float4 four = make_float4(0, 0, 0, 0);
      if (row < rows && rank < ranks) {
        four = *reinterpret_cast<const float4*>(
            side.coefficients + std::int64_t{chunk + row} * args.rank + first_rank + rank);
      }
      *reinterpret_cast<float4*>(&shared.coefficients[row][rank]) = four;
    }
    __syncthreads();
#pragma unroll 1
    for (int row = warp; row < rows; row += kAtATime) {
      Words<float, 4> values[kBatch][2];
#pragma unroll
      for (int j = 0; j < kBatch; ++j) values[j][0] = next[j][0], values[j][1] = next[j][1];
      load(chunk + row + kAtATime);
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
#pragma unroll
        for (int i = 0; i < kLongRanks; i += 4) {
          const float4 four =
              *reinterpret_cast<const float4*>(&shared.coefficients[row + j * kWarps][i]);
#pragma unroll
          for (int e = 0; e < 8; ++e) {
            const float value = values[j][e / 4].at(e % 4);
            sums[i][e / 4][e % 4] = fmaf(four.x, value, sums[i][e / 4][e % 4]);
            sums[i + 1][e / 4][e % 4] = fmaf(four.y, value, sums[i + 1][e / 4][e % 4]);
            sums[i + 2][e / 4][e % 4] = fmaf(four.z, value, sums[i + 2][e / 4][e % 4]);
            sums[i + 3][e / 4][e % 4] = fmaf(four.w, value, sums[i + 3][e / 4][e % 4]);
          }
        }
      }
    }
  }
  __syncthreads();
#pragma unroll
  for (int turn = 0; turn < kLongRanks; turn += kLongTurn) {
    if (turn > 0) __syncthreads();
#pragma unroll
    for (int i = 0; i < kLongTurn; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float* const sum = sums[turn + i][half];
        *reinterpret_cast<float4*>(
            &shared.sums_of_warps[warp][i][half * (kLongCols / 2) + 4 * lane]) =
            make_float4(sum[0], sum[1], sum[2], sum[3]);
      }
    }
    __syncthreads();
    // Four ranks of 64 fours of columns: one sum a thread.
    const int of_turn = thread / (kLongCols / 4), my_col = thread % (kLongCols / 4) * 4;
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < kWarps; ++i) {
      const float4 one =
          *reinterpret_cast<const float4*>(&shared.sums_of_warps[i][of_turn][my_col]);
      sum.x += one.x, sum.y += one.y, sum.z += one.z, sum.w += one.w;
    }
    const int rank = first_rank + turn + of_turn;
    if (rank >= args.rank) continue;
    if (args.parts == nullptr) {
      store_outer(args, rank, block * kLongCols + my_col, {sum.x, sum.y, sum.z, sum.w});
    } else {
      const std::int64_t width = std::int64_t{gridDim.x} * kLongCols;
      *reinterpret_cast<float4*>(args.parts +
                                 (std::int64_t{blockIdx.y} * args.rank + rank) * width +
                                 block * kLongCols + my_col) = sum;
    }
  }
}

}  // namespace graft::cuda::small
