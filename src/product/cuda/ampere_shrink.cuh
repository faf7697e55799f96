#pragma once

#include "backend/cuda/mma.cuh"
#include "backend/cuda/philox.cuh"
#include "product/cuda/ampere_operand.cuh"

// h (M, rank) = drop(x) · S, from registers alone: no element of x is read twice by a block, so
// shared memory would only delay it.
//
// A block makes kShrinkRows rows at a time. Its 8 warps share K in turns of 32, each sums its own
// turns, and the warps' sums are added in order: the same bits every time.
//
//            turn 0        turn 1               turn 7        turn 8
//     x  | 32 k: warp 0 | 32 k: warp 1 | … | 32 k: warp 7 | 32 k: warp 0 | …
//
// In a turn, lane 4g + q loads 16 bytes of row g: k = 8q .. 8q + 7. The matrix unit wants k = 2q,
// 2q + 1, 2q + 8, 2q + 9 of 16 there; but a sum doesn't care which k is which as long as x and S
// agree, so the lane's first four k serve one mma and its last four the next.

namespace graft::cuda::ampere {

inline constexpr int kShrinkRows = 32;       ///< Rows of a block.
inline constexpr int kShrinkUnitRows = 64;   ///< Of one beside tiles: fewer reads of S.
inline constexpr int kShrinkTurn = 32;       ///< k of a warp's turn; packed S is padded to it.
inline constexpr int kShrinkWideRanks = 64;  ///< Ranks of a pass over x.

/// Shared memory of a unit: the warps' sums.
inline constexpr std::size_t kShrinkSharedBytes = 8 * kShrinkRows * kShrinkWideRanks * 4;

struct ShrinkArgs {
  Operand x;  ///< (M, K)
  std::int64_t m = 0, k = 0;
  const void* packed = nullptr;  ///< S of the multiply type, (ranks, padded K), zeros around.
  std::int64_t padded_k = 0;     ///< K to whole turns.
  int rank = 0, ranks = 0;       ///< And the rank to whole sixteens.
  float scaling = 1.0f;
  DropoutArgs dropout;     ///< On x.
  float* h = nullptr;      ///< (M, rank), unscaled; null: not wanted.
  void* scaled = nullptr;  ///< (M, ranks): s·h of the multiply type, zeros from `rank` on.
};

/// Zeroes what dropout drops of eight elements that follow each other from element `first` on.
template <class T>
__device__ __noinline__ uint4 drop8(uint4 bits, std::uint64_t first, const Masks& masks) {
  Eight<T> eight;
  eight.bits = bits;
  const int shift = static_cast<int>(first % 8);
  const PhiloxWords low = masks.words(first / 8);
  unsigned dropped = 0;  // bit f: field f, over two counters
#pragma unroll
  for (int f = 0; f < 8; ++f) dropped |= (low.field(f) < masks.threshold ? 1u : 0u) << f;
  if (shift != 0) {
    const PhiloxWords high = masks.words(first / 8 + 1);
#pragma unroll
    for (int f = 0; f < 8; ++f) dropped |= (high.field(f) < masks.threshold ? 1u : 0u) << (8 + f);
  }
  dropped >>= shift;
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    if ((dropped >> e & 1) != 0) eight.values[e] = T(0.0f);
  }
  return eight.bits;
}

/// One pass: 16 · Rows rows by 8 · Tiles ranks from `rank0` on.
template <class T, bool kCopies, int Rows, int Tiles, int Unroll>
__device__ __forceinline__ void shrink_pass(const ShrinkArgs& a, std::int64_t row0, int rank0,
                                            const Masks& masks, float* sums) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int g = lane / 4, q = lane % 4;
  const T* packed = static_cast<const T*>(a.packed) + (rank0 + g) * a.padded_k;
  const int tiles = (a.ranks - rank0) / 8;  // that exist
  constexpr int kEights = 2 * Rows;         // of rows
  float acc[Rows][Tiles][4] = {};
  const auto multiply = [&](const uint4(&x)[kEights], const uint4(&s)[Tiles]) {
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
      const uint4 upper = x[2 * r], lower = x[2 * r + 1];
      const std::uint32_t first[4] = {upper.x, lower.x, upper.y, lower.y};
      const std::uint32_t second[4] = {upper.z, lower.z, upper.w, lower.w};
#pragma unroll
      for (int n = 0; n < Tiles; ++n) {
        const std::uint32_t s0[2] = {s[n].x, s[n].y}, s1[2] = {s[n].z, s[n].w};
        mma<T>(acc[r][n], first, s0);
        mma<T>(acc[r][n], second, s1);
      }
    }
  };
  // Rows past the last are read from the last, and not stored. No branch may stand between loads:
  // they are all to be on their way at once.
  std::int64_t row[kEights];
  const T* at[kEights];
#pragma unroll
  for (int r = 0; r < kEights; ++r) {
    row[r] = row0 + 8 * r + g;
    at[r] = static_cast<const T*>(a.x.data) + min(row[r], a.m - 1) * a.x.outer;
  }
  const auto load = [](const T* from) { return __ldg(reinterpret_cast<const uint4*>(from)); };
  const auto load_s = [&](std::int64_t k, uint4(&s)[Tiles]) {
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
      s[n] = n < tiles ? load(packed + 8 * n * a.padded_k + k) : uint4{0, 0, 0, 0};
    }
  };
  const auto drop = [&](std::int64_t k, uint4(&x)[kEights]) {
    if (!a.dropout.any()) return;
#pragma unroll
    for (int r = 0; r < kEights; ++r) {
      x[r] = drop8<T>(x[r], static_cast<std::uint64_t>(row[r] * a.k + k), masks);
    }
  };
  constexpr int kRound = 8 * kShrinkTurn;  // from a warp's turn to its next
  std::int64_t turn = warp * kShrinkTurn;
  if constexpr (kCopies) {
    for (; turn + (Unroll - 1) * kRound + kShrinkTurn <= a.k; turn += Unroll * kRound) {
      uint4 x[Unroll][kEights], s[Unroll][Tiles];
#pragma unroll
      for (int u = 0; u < Unroll; ++u) {
        const std::int64_t k = turn + u * kRound + 8 * q;
#pragma unroll
        for (int r = 0; r < kEights; ++r) x[u][r] = load(at[r] + k);
        load_s(k, s[u]);
      }
#pragma unroll
      for (int u = 0; u < Unroll; ++u) {
        drop(turn + u * kRound + 8 * q, x[u]);
        multiply(x[u], s[u]);
      }
    }
  }
#pragma unroll 1
  for (; turn < a.k; turn += kRound) {
    const std::int64_t k = turn + 8 * q;
    uint4 x[kEights], s[Tiles];
#pragma unroll
    for (int r = 0; r < kEights; ++r) {
      x[r] = {0, 0, 0, 0};
      if (k < a.k && row[r] < a.m)
        x[r] = kCopies ? load(at[r] + k) : gather8<T>(a.x, row[r], k, a.k);
    }
    load_s(k, s);  // packed to whole turns
    drop(k, x);
    multiply(x, s);
  }
  // sums[warp][row][rank]
  constexpr int kRanks = 8 * Tiles, kSums = 16 * Rows * kRanks;
  float* mine = sums + warp * kSums;
#pragma unroll
  for (int r = 0; r < Rows; ++r) {
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float* to = mine + (16 * r + 8 * half + g) * kRanks + 8 * n + 2 * q;
        *reinterpret_cast<float2*>(to) = make_float2(acc[r][n][2 * half], acc[r][n][2 * half + 1]);
      }
    }
  }
  __syncthreads();
  const float kept = a.dropout.any() ? masks.scale : 1.0f;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < kSums; i += 256) {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < 8; ++w) sum += sums[w * kSums + i];
    sum *= kept;
    const std::int64_t to = row0 + i / kRanks;
    const int rank = rank0 + i % kRanks;
    if (to >= a.m || rank >= a.ranks) continue;
    if (a.h != nullptr && rank < a.rank) a.h[to * a.rank + rank] = sum;
    if (a.scaled != nullptr) {
      static_cast<T*>(a.scaled)[to * a.ranks + rank] =
          from_float<T>(rank < a.rank ? a.scaling * sum : 0.0f);
    }
  }
  __syncthreads();
}

/// Rows of h from row0 on: kShrinkRows of them, or kShrinkUnitRows. All 256 threads of a block;
/// `sums` has kShrinkSharedBytes.
template <class T, bool kUnit>
__device__ __forceinline__ void shrink_unit(const ShrinkArgs& a, std::int64_t row0, float* sums) {
  const Masks masks = a.dropout.any() ? a.dropout.masks() : Masks{};
  if (a.x.copies && a.ranks == 16) {
    shrink_pass<T, true, kUnit ? 4 : 2, 2, kUnit ? 2 : 4>(a, row0, 0, masks, sums);
    return;
  }
#pragma unroll 1
  for (int rows = 0; rows < (kUnit ? kShrinkUnitRows : kShrinkRows); rows += kShrinkRows) {
#pragma unroll 1
    for (int rank0 = 0; rank0 < a.ranks && row0 + rows < a.m; rank0 += kShrinkWideRanks) {
      if (a.x.copies) {
        shrink_pass<T, true, 2, 8, 2>(a, row0 + rows, rank0, masks, sums);
      } else {
        shrink_pass<T, false, 2, 8, 1>(a, row0 + rows, rank0, masks, sums);
      }
    }
  }
}

/// Units shared out over the blocks.
template <class T>
__global__ void __launch_bounds__(256) shrink(const __grid_constant__ ShrinkArgs a) {
  extern __shared__ __align__(128) unsigned char shared[];
  wait_for_kernel_before();
  let_next_kernel_start();
  for (std::int64_t row0 = std::int64_t{blockIdx.x} * kShrinkRows; row0 < a.m;
       row0 += std::int64_t{gridDim.x} * kShrinkRows) {
    shrink_unit<T, false>(a, row0, reinterpret_cast<float*>(shared));
  }
}

/// h from the sums that tiles made of parts of K: what the shrink's own kernel ends with.
struct FinishArgs {
  const float* parts = nullptr;  ///< (count, M, ranks)
  std::int64_t m = 0;
  int count = 0, rank = 0, ranks = 0;
  float scaling = 1.0f;
  float* h = nullptr;             ///< (M, rank), unscaled; null: not wanted.
  void* scaled = nullptr;         ///< (M, ranks): s·h of the multiply type; null: not wanted.
  DType dtype = DType::kFloat16;  ///< The multiply type.
};

/// A template, as a header's kernels have to be.
template <int kThreads>
__global__ void __launch_bounds__(kThreads) finish(const __grid_constant__ FinishArgs a) {
  wait_for_kernel_before();
  let_next_kernel_start();
  const std::int64_t size = a.m * a.ranks;
  for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < size;
       i += std::int64_t{gridDim.x} * kThreads) {
    float sum = 0.0f;
    for (int part = 0; part < a.count; ++part) sum += a.parts[part * size + i];
    const std::int64_t row = i / a.ranks;
    const int rank = static_cast<int>(i % a.ranks);
    if (a.h != nullptr && rank < a.rank) a.h[row * a.rank + rank] = sum;
    if (a.scaled != nullptr) {
      store_from_float(a.scaled, a.dtype, i, rank < a.rank ? a.scaling * sum : 0.0f);
    }
  }
}

/// y from the sums that tiles made of parts of K.
struct FinishRowsArgs {
  const float* parts = nullptr;  ///< (count, M, N)
  int count = 0;
  std::int64_t m = 0, n = 0;
  const void* bias = nullptr;
  std::int64_t bias_stride = 0;
  DType bias_dtype = DType::kFloat32;
  void* y = nullptr;
  std::int64_t y_stride = 0;
  bool y_float = false, accumulate = false;
  DType dtype = DType::kFloat16;  ///< The multiply type, which y has unless it is float32.
};

/// A thread has a column of so many rows.
inline constexpr int kFinishRows = 2;

/// A template, as a header's kernels have to be.
template <int kThreads>
__global__ void __launch_bounds__(kThreads) finish_rows(const __grid_constant__ FinishRowsArgs a) {
  wait_for_kernel_before();
  let_next_kernel_start();
  const std::int64_t n = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const std::int64_t row0 = std::int64_t{blockIdx.y} * kFinishRows;
  if (n >= a.n) return;
  const float bias =
      a.bias == nullptr ? 0.0f : load_as_float(a.bias, a.bias_dtype, n * a.bias_stride);
  float sums[kFinishRows] = {};
#pragma unroll 4
  for (int part = 0; part < a.count; ++part) {
#pragma unroll
    for (int r = 0; r < kFinishRows; ++r) {
      if (row0 + r < a.m) sums[r] += __ldcg(a.parts + (part * a.m + row0 + r) * a.n + n);
    }
  }
#pragma unroll
  for (int r = 0; r < kFinishRows; ++r) {
    if (row0 + r >= a.m) break;
    const float value = sums[r] + bias;
    const std::int64_t at = (row0 + r) * a.y_stride + n;
    const DType dtype = a.y_float ? DType::kFloat32 : a.dtype;
    store_from_float(a.y, dtype, at, a.accumulate ? load_as_float(a.y, dtype, at) + value : value);
  }
}

/// What a call makes ready: S and E in the multiply type, laid out for copies.
struct PrepareArgs {
  Operand shrink;  ///< As (rank, K).
  Operand expand;  ///< As (N, rank).
  std::int64_t k = 0, n = 0, padded_k = 0, padded_n = 0;
  int rank = 0, ranks = 0;
  DType dtype = DType::kFloat16;  ///< The multiply type.
  void* packed_shrink = nullptr;  ///< (ranks, padded_k)
  void* packed_expand = nullptr;  ///< (N, ranks), or (ranks, padded_n) if `expand_along_n`.
  bool expand_along_n = false;
  unsigned* zeroed = nullptr;  ///< The tiles' flags; null: none.
  std::int64_t zeros = 0;
};

/// A template, as a header's kernels have to be.
template <int kThreads>
__global__ void __launch_bounds__(kThreads) prepare(const __grid_constant__ PrepareArgs a) {
  wait_for_kernel_before();
  let_next_kernel_start();
  const std::int64_t first = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const std::int64_t step = std::int64_t{gridDim.x} * kThreads;
  for (std::int64_t i = first; i < a.zeros; i += step) a.zeroed[i] = 0;
  if (a.packed_shrink != nullptr) {
    for (std::int64_t i = first; i < a.ranks * a.padded_k; i += step) {
      const std::int64_t r = i / a.padded_k, k = i % a.padded_k;
      store_from_float(a.packed_shrink, a.dtype, i,
                       r < a.rank && k < a.k
                           ? load_as_float(a.shrink.data, a.shrink.dtype,
                                           r * a.shrink.outer + k * a.shrink.inner)
                           : 0.0f);
    }
  }
  if (a.packed_expand != nullptr) {
    for (std::int64_t i = first; i < a.ranks * a.padded_n; i += step) {
      const std::int64_t r = a.expand_along_n ? i / a.padded_n : i % a.ranks;
      const std::int64_t n = a.expand_along_n ? i % a.padded_n : i / a.ranks;
      store_from_float(a.packed_expand, a.dtype, i,
                       r < a.rank && n < a.n
                           ? load_as_float(a.expand.data, a.expand.dtype,
                                           n * a.expand.outer + r * a.expand.inner)
                           : 0.0f);
    }
  }
}

}  // namespace graft::cuda::ampere
