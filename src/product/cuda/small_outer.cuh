#pragma once

#include "backend/cuda/async_copy.cuh"
#include "product/cuda/small.cuh"

namespace graft::cuda::small {

// The gradients of a small pair, both in one launch:
//
//     dAᵀ = s·gᵀ·x        dB = s·hᵀ·dy        out (rank, cols) = s · cᵀ (rank, M) · matrix (M,
//     cols)
//
// A block has 64 columns of one of them and some rows. Its warps are 2 by columns and 4 by rows:
// each copies the 32 columns that it multiplies, 16 rows at a time, to its own ring in shared
// memory, and waits for no other. c, of some rows at a time, is there for all of them.
//
//     sums[ranks][32 cols] += c[16 rows][ranks]ᵀ · matrix[16 rows][32 cols]        in matrix units
//
// Then the sums of the warps that have the same columns are added up. Up to 8 blocks that share
// columns are a cluster: each sends every other one the part of its sums that the other will add up
// (async_copy.cuh). A second launch adds up what is left of rows that go over several clusters, and
// where there are no clusters.
constexpr int kOuterCols = 64, kOuterRanks = 32;
constexpr int kWarpCols = 32, kColWarps = kOuterCols / kWarpCols, kRowWarps = kWarps / kColWarps;
constexpr int kTurnRows = 16;  // of a warp

struct OuterSide {
  const void* matrix;
  const float* coefficients;
  float* out;
  std::int64_t stride, out_row, out_col;
  int cols, blocks;
  float before, after;  // scaling of coefficients, of sums
};

struct OuterArgs {
  OuterSide sides[2];
  DType dtype;  // of the matrices
  int block_cols;
  int rows, rank, split_rows, cluster;
  int splits;    // clusters of blocks that share columns
  float* parts;  // [split][rank][column of all blocks]; null: there is one split
};

template <class T>
struct OuterShared {
  static constexpr bool kFloat = std::is_same_v<T, float>;
  static constexpr int kLd = kWarpCols + 8;  // elements of a row of the ring
  static constexpr int kStages = kFloat ? 4 : 8, kStage = kTurnRows * kLd;
  // Rows of c at once. Of floats, there are both parts.
  static constexpr int kChunk = kFloat ? 64 : 128, kCLd = kFloat ? 2 * (kOuterRanks + 4) : kLd;
  static constexpr int kSumsLd = kOuterCols + 4;
  static constexpr int kRing = kWarps * kStages * kStage;  // in elements
  static constexpr std::size_t kBytes = (kRing + kChunk * kCLd) * sizeof(T);
  // What a cluster's blocks send, and the box that counts it.
  static constexpr std::size_t kLetters = kOuterRanks * kOuterCols * 4 + 16;
  static_assert(kRowWarps * kOuterRanks * kSumsLd * 4 <= kRing * static_cast<int>(sizeof(T)));
};

/// Writes neighbours of the sums, which begin at `col` of the columns of all blocks.
template <int kCount>
__device__ inline void store_outer(const OuterArgs& args, int rank, int col,
                                   const float (&sums)[kCount]) {
  const int of_first = args.sides[0].blocks * args.block_cols;
  const bool second = col >= of_first;
  const OuterSide& side = second ? args.sides[1] : args.sides[0];
  if (second) col -= of_first;
  if (col >= side.cols) return;
  float* const to = side.out + rank * side.out_row + col * side.out_col;
#pragma unroll
  for (int i = 0; i < kCount; ++i) to[i * side.out_col] = side.after * sums[i];
}

/// One turn of a warp in half types: its 16 rows at `ring`, their c at `c`.
template <class T>
__device__ __forceinline__ void outer_turn(const T* ring, const T* c, bool wide,
                                           float (&sums)[2][4][4]) {
  using Shared = OuterShared<T>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::uint32_t rows = shared_address(ring + (lane % 8 + lane / 8 % 2 * 8) * Shared::kLd +
                                            lane / 16 * 8),
                      ranks = shared_address(c + (lane % 8 + lane / 16 * 8) * Shared::kCLd +
                                             lane / 8 % 2 * 8);
  std::uint32_t right[2][4];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    ldmatrix_trans(rows + 32 * i, right[i][0], right[i][1], right[i][2], right[i][3]);
  }
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    if (m == 1 && !wide) break;
    std::uint32_t left[4];
    ldmatrix_trans(ranks + 32 * m, left[0], left[1], left[2], left[3]);
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      mma<T>(sums[m][t], left, {right[t / 2][t % 2 * 2], right[t / 2][t % 2 * 2 + 1]});
    }
  }
}

/// The same in float32: columns 4g + t are those of tile t.
__device__ __forceinline__ void outer_turn(const float* ring, const float* c, bool wide,
                                           float (&sums)[2][4][4]) {
  using Shared = OuterShared<float>;
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
  const float* const my_rows = ring + q * Shared::kLd + 4 * g;
  const float* const my_ranks = c + q * Shared::kCLd + 2 * g;
#pragma unroll
  for (int deep = 0; deep < kTurnRows; deep += 8) {
    TwoParts right[4][2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float4 four = *reinterpret_cast<const float4*>(my_rows + (deep + 4 * i) * Shared::kLd);
      right[0][i] = in_parts(four.x), right[1][i] = in_parts(four.y);
      right[2][i] = in_parts(four.z), right[3][i] = in_parts(four.w);
    }
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      if (m == 1 && !wide) break;
      TwoParts left[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        left[i] = *reinterpret_cast<const TwoParts*>(my_ranks + (deep + i / 2 * 4) * Shared::kCLd +
                                                     2 * (16 * m + i % 2 * 8));
      }
      // The matrix units round their sums towards zero: short ones, added up as floats are.
      float of_8[4][4] = {};
      mma_parts<4>(of_8, left, right);
#pragma unroll
      for (int t = 0; t < 4; ++t) {
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[m][t][e] += of_8[t][e];
      }
    }
  }
}

template <class T>
__device__ __forceinline__ void make_outer(const OuterArgs& args) {
  using Shared = OuterShared<T>;
  constexpr int kPack = 16 / sizeof(T), kPacks = kWarpCols / kPack, kOfRow = 32 / kPacks;
  extern __shared__ __align__(128) unsigned char memory[];
  T* const ring_of_all = reinterpret_cast<T*>(memory);
  T* const c = ring_of_all + Shared::kRing;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int col_warp = warp % kColWarps, row_warp = warp / kColWarps;
  T* const ring = ring_of_all + warp * Shared::kStages * Shared::kStage;
  const int block = static_cast<int>(blockIdx.y);
  const bool second = block >= args.sides[0].blocks, wide = args.rank > 16;
  const OuterSide& side = second ? args.sides[1] : args.sides[0];
  const int begin = static_cast<int>(blockIdx.x) * args.split_rows;
  const int rows = max(0, min(args.split_rows, args.rows - begin));

  // Turn i of this warp: rows from 16 · (2i + row warp) on.
  const int my_col = (second ? block - args.sides[0].blocks : block) * kOuterCols +
                     col_warp * kWarpCols + lane % kPacks * kPack;
  const bool my_cols = my_col < side.cols;
  int row = kTurnRows * row_warp + lane / kPacks, slot = 0;  // of the next turn's copy
  const T* from = static_cast<const T*>(side.matrix) + (begin + row) * side.stride + my_col;
  const std::uint32_t to =
      shared_address(ring + lane / kPacks * Shared::kLd + lane % kPacks * kPack);
  const std::int64_t step = kOfRow * side.stride, next_turn = kRowWarps * kTurnRows * side.stride;
  const auto copy_turn = [&] {
    const T* at = from;
#pragma unroll
    for (int j = 0; j < kTurnRows / kOfRow; ++j, at += step) {
      const bool exists = my_cols && row + j * kOfRow < rows;
      copy_async(to + (slot * Shared::kStage + j * kOfRow * Shared::kLd) * sizeof(T),
                 exists ? at : side.matrix, exists);
    }
    row += kRowWarps * kTurnRows, from += next_turn;
    slot = slot == Shared::kStages - 1 ? 0 : slot + 1;
  };
  // The matrix is older than the kernel before this one, which has waited for what made it. Its c
  // may not be.
  const int turns = (rows + kTurnRows * kRowWarps - 1) / (kTurnRows * kRowWarps);
#pragma unroll 1
  for (int i = 0; i < Shared::kStages - 1; ++i) {
    if (i < turns) copy_turn();
    commit_copies();
  }
  [[maybe_unused]] const std::uint32_t letters = shared_address(memory) +
                                                 static_cast<std::uint32_t>(Shared::kBytes),
                                       box = letters + kOuterRanks * kOuterCols * 4;
  const int fours_of_rank = kOuterCols / 4, all_fours = args.rank * fours_of_rank;
  [[maybe_unused]] const int share =
      all_fours / args.cluster;  // of the sums, that this block adds up
#if __CUDA_ARCH__ >= 900
  if (args.cluster > 1 && thread == 0) make_box(box), expect_letters(box, 16 * all_fours);
#endif
  wait_for_kernel_before();
  let_next_kernel_start();

  constexpr int kFours = Shared::kChunk * kOuterRanks / 4 / kThreads;
  float4 fours[kFours];
  const int my_rank = thread % (kOuterRanks / 4) * 4;
  const auto load_c = [&](int first) {
#pragma unroll
    for (int i = 0; i < kFours; ++i) {
      const int row = first + (thread + i * kThreads) / (kOuterRanks / 4);
      fours[i] = make_float4(0, 0, 0, 0);
      if (row < rows && my_rank < args.rank) {
        fours[i] = *reinterpret_cast<const float4*>(
            side.coefficients + std::int64_t{begin + row} * args.rank + my_rank);
      }
    }
  };
  load_c(0);
#if __CUDA_ARCH__ >= 900
  if (args.cluster > 1) meet_cluster();  // there are boxes
#endif
  float sums[2][4][4] = {};
#pragma unroll 1
  for (int chunk = 0; chunk < rows; chunk += Shared::kChunk) {
    if (chunk > 0) __syncthreads();
#pragma unroll
    for (int i = 0; i < kFours; ++i) {
      T* const to = c + (thread + i * kThreads) / (kOuterRanks / 4) * Shared::kCLd;
      const float4 four = fours[i];
      if constexpr (Shared::kFloat) {
        TwoParts* const parts = reinterpret_cast<TwoParts*>(to) + my_rank;
        parts[0] = in_parts(four.x), parts[1] = in_parts(four.y);
        parts[2] = in_parts(four.z), parts[3] = in_parts(four.w);
      } else {
        const float by = side.before;
        *reinterpret_cast<Pack<T, 4>*>(to + my_rank) = {
            from_float<T>(by * four.x), from_float<T>(by * four.y), from_float<T>(by * four.z),
            from_float<T>(by * four.w)};
      }
    }
    __syncthreads();
    if (chunk + Shared::kChunk < rows) load_c(chunk + Shared::kChunk);
    const int first = chunk / (kTurnRows * kRowWarps),
              last = min(turns, first + Shared::kChunk / (kTurnRows * kRowWarps));
#pragma unroll 1
    for (int i = first; i < last; ++i) {
      wait_copies<Shared::kStages - 2>();
      __syncwarp();
      if (i + Shared::kStages - 1 < turns) copy_turn();
      commit_copies();
      outer_turn(ring + i % Shared::kStages * Shared::kStage,
                 c + ((i - first) * kRowWarps + row_warp) * kTurnRows * Shared::kCLd, wide, sums);
    }
  }
  wait_copies<0>();
  __syncthreads();  // the ring is empty: sums[row warp][rank][col]

  float* const all = reinterpret_cast<float*>(memory);
  {
    const int g = lane / 4, q = lane % 4;
    float* const mine = all + row_warp * kOuterRanks * Shared::kSumsLd + col_warp * kWarpCols;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      if (m == 1 && !wide) break;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float* const to = mine + (16 * m + 8 * half + g) * Shared::kSumsLd;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if constexpr (Shared::kFloat) {
            *reinterpret_cast<float4*>(to + 8 * q + 4 * i) =
                make_float4(sums[m][0][2 * half + i], sums[m][1][2 * half + i],
                            sums[m][2][2 * half + i], sums[m][3][2 * half + i]);
          } else {
#pragma unroll
            for (int t = 2 * i; t < 2 * i + 2; ++t) {
              *reinterpret_cast<float2*>(to + 8 * t + 2 * q) =
                  make_float2(sums[m][t][2 * half], sums[m][t][2 * half + 1]);
            }
          }
        }
      }
    }
  }
  __syncthreads();
  [[maybe_unused]] const int in_cluster = static_cast<int>(blockIdx.x) % args.cluster;
  const int split = static_cast<int>(blockIdx.x) / args.cluster;
  const auto store = [&](int four, const float4& sum) {
    const int rank = four / fours_of_rank, col = four % fours_of_rank * 4;
    if (args.parts == nullptr) {
      return store_outer(args, rank, block * kOuterCols + col, {sum.x, sum.y, sum.z, sum.w});
    }
    const std::int64_t width = std::int64_t{gridDim.y} * kOuterCols;
    *reinterpret_cast<float4*>(args.parts + (std::int64_t{split} * args.rank + rank) * width +
                               block * kOuterCols + col) = sum;
  };
  for (int i = thread; i < all_fours; i += kThreads) {
    const float* const at = all + i / fours_of_rank * Shared::kSumsLd + i % fours_of_rank * 4;
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int w = 0; w < kRowWarps; ++w) {
      const float4 one = *reinterpret_cast<const float4*>(at + w * kOuterRanks * Shared::kSumsLd);
      sum.x += one.x, sum.y += one.y, sum.z += one.z, sum.w += one.w;
    }
    if (args.cluster == 1) {
      store(i, sum);
      continue;
    }
#if __CUDA_ARCH__ >= 900
    const int owner = i / share;
    const auto letter = static_cast<std::uint32_t>(16 * (in_cluster * share + i % share));
    send(in_block(letters + letter, owner), {sum.x, sum.y, sum.z, sum.w}, in_block(box, owner));
#endif
  }
#if __CUDA_ARCH__ >= 900
  if (args.cluster == 1 || thread >= share) return;
  wait_letters(box, 0);
  const float4* const from_all = reinterpret_cast<const float4*>(memory + Shared::kBytes);
  for (int i = thread; i < share; i += kThreads) {
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 8
    for (int j = 0; j < args.cluster; ++j) {
      const float4 one = from_all[j * share + i];
      sum.x += one.x, sum.y += one.y, sum.z += one.z, sum.w += one.w;
    }
    store(in_cluster * share + i, sum);
  }
#endif
}

__global__ void __launch_bounds__(kThreads, 2) small_outer(const __grid_constant__ OuterArgs args) {
  make_outer<float>(args);
}

__global__ void __launch_bounds__(kThreads, 2)
    small_half_outer(const __grid_constant__ OuterArgs args) {
  with_half(args.dtype, [&]<class T>(std::type_identity<T>) { make_outer<T>(args); });
}

/// The sums of the splits' parts, a column of a rank a thread.
__global__ void __launch_bounds__(kThreads) sum_outer(const __grid_constant__ OuterArgs args) {
  wait_for_kernel_before();
  let_next_kernel_start();
  const int width = (args.sides[0].blocks + args.sides[1].blocks) * args.block_cols;
  const int at = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (at >= args.rank * width) return;
  const std::int64_t step = std::int64_t{args.rank} * width;
  const float* const from = args.parts + at;
  float sum = 0;
#pragma unroll 16
  for (int split = 0; split < args.splits; ++split) sum += from[split * step];
  store_outer(args, at / width, at % width, {sum});
}

}  // namespace graft::cuda::small
