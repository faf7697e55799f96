#pragma once

#include "product/cuda/small.cuh"
#include "product/cuda/small_row.cuh"

namespace graft::cuda::small {

// Half types, 16 rows at a time, in the matrix units. x goes from memory straight to registers; a
// warp's parts of A and of B through its own part of shared memory, once a block. What makes full
// loads and stores possible is that the order of K, of the ranks and of the columns inside a
// product is free, as long as both operands have the same:
//
//     lane 4g + q      x   row g, g + 8      k      8q .. 8q + 7 of each 32 of its warp's 64
//                      h   row g, g + 8      ranks  4q .. 4q + 3 of each 16
//                      B   ranks 4q ..       cols   8 of the 16 bytes 4·(g % 2) + g / 2, one a tile
//                      of mma y   row g, g + 8      cols   8q .. 8q + 7 of each 32 of its warp's 64
//
// h is the sum of the warps' parts: it goes through shared memory, where s·h is rounded.
constexpr int kHalfRows = 16;

// Blocks that share a multiprocessor: what one waits for, the other has time for.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kHalfBlocks = 1;  // registers for two would not do there
#else
constexpr int kHalfBlocks = 2;
#endif

/// A warp's parts of A [k][rank] and B [rank][col] in shared memory, in packs of 16 bytes that lie
/// in another order, so that eight of them that are read at once lie in different banks.
template <int kRanks>
struct HalfShared {
  static constexpr int kA = kSlice * kRanks, kB = kRanks * kSlice;  // elements
  static constexpr int kLd = kRanks + 8;                            // of a row of h, in floats
  static constexpr int kPartBytes = kWarps * kHalfRows * kLd * 4;
  static constexpr std::size_t kBytes = 2 * (kWarps * (kA + kB) + kHalfRows * kRanks) + kPartBytes;

  static __device__ int a_at(int k, int rank) {
    constexpr int kPacks = kRanks / 8;
    const int swap = kRanks == 16 ? (k >> 3 & 1) << 2 | (k >> 4 & 1) : k >> 3 & 3;
    return ((k * kPacks + rank / 8) ^ swap) * 8 + rank % 8;
  }
  static __device__ int along_at(int rank, int k) {
    return (rank * 8 + ((k / 8) ^ (rank & 1) << 2)) * 8;
  }
  static __device__ int b_at(int rank, int col) {
    return (rank * 8 + ((col / 8) ^ (rank >> 2 & 3))) * 8 + col % 8;
  }
};

/// 8 bytes into shared memory.
__device__ __forceinline__ void copy8(std::uint32_t to, const void* source) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(to), "l"(source) : "memory");
}

/// 8 bytes of shared memory.
__device__ __forceinline__ void load8(std::uint32_t from, std::uint32_t& low, std::uint32_t& high) {
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(low), "=r"(high) : "r"(from) : "memory");
}

template <class T>
__device__ __forceinline__ Pack<T, 4> as_four(const float4& four) {
  return {from_float<T>(four.x), from_float<T>(four.y), from_float<T>(four.z),
          from_float<T>(four.w)};
}

/// Columns of A that lie together stay as they lie: [rank][k], in packs.
template <class T, int kRanks>
__device__ void bring_a_along(const SmallArgs& args, int k, T* a) {
  const int lane = static_cast<int>(threadIdx.x) % 32, deep = lane % 8 * 8;
  const bool exists = k + deep < args.depth;
#pragma unroll 4
  for (int rank = lane / 8; rank < args.rank; rank += 4) {
    T* const to = a + HalfShared<kRanks>::along_at(rank, deep);
    const std::int64_t at = k + deep + rank * args.a_col;
    if (args.float_adapter) {
      const float* const from = static_cast<const float*>(args.a) + at;
      Pack<T, 8> pack{};
      if (exists) {
        const auto low = as_four<T>(*reinterpret_cast<const float4*>(from)),
                   high = as_four<T>(*reinterpret_cast<const float4*>(from + 4));
#pragma unroll
        for (int i = 0; i < 4; ++i)
          pack.values[i] = low.values[i], pack.values[4 + i] = high.values[i];
      }
      *reinterpret_cast<Pack<T, 8>*>(to) = pack;
    } else {
      copy_async(shared_address(to), exists ? static_cast<const T*>(args.a) + at : args.a, exists);
    }
  }
}

/// Columns of B that lie together come as the products have them, fours of ranks, each to the lane
/// that will read it: [16 ranks][tile of columns][lane][4 ranks].
template <class T, int kRanks>
__device__ void bring_b_along(const SmallArgs& args, int first_col, T* b) {
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
  const int col = first_col + 8 * (g % 2 * 4 + g / 2);
#pragma unroll 4
  for (int turn = 0; turn < kRanks / 2; ++turn) {
    const int rank = turn / 8 * 16 + 4 * q;
    const std::int64_t from = (col + turn % 8) * args.b_col + rank;
    T* const to = b + (32 * turn + lane) * 4;
    if (rank >= args.rank || col >= args.cols) {
      *reinterpret_cast<Pack<T, 4>*>(to) = {};
    } else if (args.float_adapter) {
      *reinterpret_cast<Pack<T, 4>*>(to) =
          as_four<T>(*reinterpret_cast<const float4*>(static_cast<const float*>(args.b) + from));
    } else {
      copy8(shared_address(to), static_cast<const T*>(args.b) + from);
    }
  }
}

/// Starts to bring k .. k + 63 of A to a warp's part of shared memory; zeros past the depth.
template <class T, int kRanks, bool kAlong>
__device__ void bring_a(const SmallArgs& args, int k, T* a) {
  if (kAlong) return bring_a_along<T, kRanks>(args, k, a);
  using Shared = HalfShared<kRanks>;
  const int lane = static_cast<int>(threadIdx.x) % 32, left = args.depth - k;
  if (args.a_vectors && args.rank % 16 == 0 && !args.float_adapter) {
    const int log_packs = args.rank / 16, rank = (lane & ((1 << log_packs) - 1)) * 8;
    const int first = lane >> log_packs, step = 32 >> log_packs;
    const T* from = static_cast<const T*>(args.a) + (k + first) * args.a_row + rank;
#pragma unroll 2
    for (int i = first; i < kSlice; i += step, from += step * args.a_row) {
      copy_async(shared_address(a + Shared::a_at(i, rank)), i < left ? from : args.a, i < left);
    }
    return;
  }
  // Fours of ranks.
  const int log_fours = args.rank == 4    ? 0
                        : args.rank == 8  ? 1
                        : args.rank <= 16 ? 2
                                          : 3,
            rank = (lane & ((1 << log_fours) - 1)) * 4;
  if (rank >= args.rank) return;
#pragma unroll 2
  for (int i = lane >> log_fours; i < kSlice; i += 32 >> log_fours) {
    T* const to = a + Shared::a_at(i, rank);
    const std::int64_t at = (k + i) * args.a_row + rank * args.a_col;
    Pack<T, 4> four{};
    if (i < left) {
      if (args.float_adapter) {
        const float* const from = static_cast<const float*>(args.a) + at;
        four = as_four<T>(args.a_vectors ? *reinterpret_cast<const float4*>(from)
                                         : make_float4(from[0], from[args.a_col],
                                                       from[2 * args.a_col], from[3 * args.a_col]));
      } else {
        const T* const from = static_cast<const T*>(args.a) + at;
        if (args.a_vectors) {
          copy8(shared_address(to), from);
          continue;
        }
        four = {from[0], from[args.a_col], from[2 * args.a_col], from[3 * args.a_col]};
      }
    }
    *reinterpret_cast<Pack<T, 4>*>(to) = four;
  }
}

/// The same of 64 columns of B.
template <class T, int kRanks, bool kAlong>
__device__ void bring_b(const SmallArgs& args, int first_col, T* b) {
  if (kAlong) return bring_b_along<T, kRanks>(args, first_col, b);
  using Shared = HalfShared<kRanks>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (args.b_vectors && !args.float_adapter) {
    const int col = lane % 8 * 8;
    if (first_col + col >= args.cols) return;
    const T* from = static_cast<const T*>(args.b) + (lane / 8) * args.b_row + first_col + col;
#pragma unroll 2
    for (int rank = lane / 8; rank < args.rank; rank += 4, from += 4 * args.b_row) {
      copy_async(shared_address(b + Shared::b_at(rank, col)), from, true);
    }
    return;
  }
  const int col = lane % 16 * 4;
  if (first_col + col >= args.cols) return;
#pragma unroll 2
  for (int rank = lane / 16; rank < args.rank; rank += 2) {
    const std::int64_t at = rank * args.b_row + (first_col + col) * args.b_col;
    Pack<T, 4> four;
    if (args.float_adapter) {
      const float* const from = static_cast<const float*>(args.b) + at;
      four = as_four<T>(args.b_vectors ? *reinterpret_cast<const float4*>(from)
                                       : make_float4(from[0], from[args.b_col],
                                                     from[2 * args.b_col], from[3 * args.b_col]));
    } else {
      const T* const from = static_cast<const T*>(args.b) + at;
      four = {from[0], from[args.b_col], from[2 * args.b_col], from[3 * args.b_col]};
    }
    *reinterpret_cast<Pack<T, 4>*>(b + Shared::b_at(rank, col)) = four;
  }
}

/// kAlong: columns of A and of B lie together, as they do when backward sees them transposed.
template <class T, int kRanks, bool kAlong>
__global__ void __launch_bounds__(kThreads, kHalfBlocks)
    small_half(const __grid_constant__ SmallArgs args) {
  using Shared = HalfShared<kRanks>;
  constexpr int kRun = kRanks / 16;  // ranks that a thread sums
  extern __shared__ __align__(128) unsigned char memory[];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int g = lane / 4, q = lane % 4;
  T* const a = reinterpret_cast<T*>(memory) + warp * Shared::kA;
  T* const b = reinterpret_cast<T*>(memory) + kWarps * Shared::kA + warp * Shared::kB;
  T* const scaled = reinterpret_cast<T*>(memory) + kWarps * (Shared::kA + Shared::kB);
  float* const parts = reinterpret_cast<float*>(scaled + kHalfRows * kRanks);
  const int rows = static_cast<int>(args.rows), step = static_cast<int>(gridDim.x) * kHalfRows;
  int first = static_cast<int>(blockIdx.x) * kHalfRows;
  const int first_col = static_cast<int>(blockIdx.y) * args.block_cols,
            my_col = first_col + kSlice * warp;
  const bool has_cols = my_col < min(args.cols, first_col + args.block_cols);
  const int my_k = kSlice * warp;
  if (blockIdx.y == 0) {
    const int row = first + thread / 16;
    if (row < rows) {
      const T* const from = static_cast<const T*>(args.x) + row * args.x_stride;
      for (int k = thread % 16 * 64; k < args.depth; k += 16 * 64) prefetch(from + k);
    }
    const int bytes = args.float_adapter ? 4 : 2;
    if (args.a_vectors || args.a_along) prefetch_share(args.a, args.depth * args.rank * bytes);
    if (args.b_vectors || args.b_along) prefetch_share(args.b, args.cols * args.rank * bytes);
  }
  wait_for_kernel_before();
  let_next_kernel_start();

  uint4 x[2][2];  // [32 of K][row g, row g + 8]
  const auto load_x = [&](int k) {
    const T* const from = static_cast<const T*>(args.x) + (first + g) * args.x_stride + k + 8 * q;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        x[c][half] = uint4{0, 0, 0, 0};
        if (first + g + 8 * half < rows && k + 8 * q + 32 * c < args.depth) {
          x[c][half] = *reinterpret_cast<const uint4*>(from + 8 * half * args.x_stride + 32 * c);
        }
      }
    }
  };
  load_x(my_k);
  bring_a<T, kRanks, kAlong>(args, my_k, a);
  commit_copies();
  std::uint32_t expand[kRanks / 16][8][2];  // [16 ranks][tile of columns]
  bool has_b = false;
  if (has_cols) bring_b<T, kRanks, kAlong>(args, my_col, b);
  commit_copies();
  wait_copies<1>();
  __syncwarp();

  // ldmatrix: lane 8m + i names row i of matrix m: k as x has it, ranks 0 to 7 or 8 to 15.
  const int my_deep = lane % 8 / 2 * 8 + lane % 2 + lane / 8 % 2 * 2;
  // Of columns, lane 4g + q reads fours along K of ranks g, g + 8 and so on.
  const std::uint32_t a_from = shared_address(
      a + (kAlong ? Shared::along_at(g, 8 * q) : Shared::a_at(my_deep, lane / 16 * 8)));
  while (true) {
    float sums[kRanks / 8][4] = {};
    for (int k = my_k;;) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
#pragma unroll
        for (int s = 0; s < 2; ++s) {
          const uint4 &top = x[c][0], &low = x[c][1];
          const std::uint32_t left[4] = {s == 0 ? top.x : top.z, s == 0 ? low.x : low.z,
                                         s == 0 ? top.y : top.w, s == 0 ? low.y : low.w};
#pragma unroll
          for (int i = 0; i < kRanks / 16; ++i) {
            std::uint32_t right[4];
            if constexpr (kAlong) {
#pragma unroll
              for (int j = 0; j < 2; ++j) {
                load8((a_from ^ 64 * c) + 2 * ((16 * i + 8 * j) * kSlice + 4 * s), right[2 * j],
                      right[2 * j + 1]);
              }
            } else {
              ldmatrix_trans((a_from ^ 32 * i) + 2 * kRanks * (32 * c + 4 * s), right[0], right[1],
                             right[2], right[3]);
            }
            mma<T>(sums[2 * i], left, {right[0], right[1]});
            mma<T>(sums[2 * i + 1], left, {right[2], right[3]});
          }
        }
      }
      if (args.depth <= kAtOnce) break;
      // K in turns: A is brought again for every 16 rows.
      k += kAtOnce;
      const bool last = k - my_k >= args.depth;
      __syncwarp();
      bring_a<T, kRanks, kAlong>(args, last ? my_k : k, a);
      commit_copies();
      if (last) break;
      load_x(k);
      wait_copies<0>();
      __syncwarp();
    }
    const int now = first;
    first += step;
    if (first < rows) load_x(my_k);

#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int t = 0; t < kRanks / 8; ++t) {
        *reinterpret_cast<float2*>(parts + (warp * kHalfRows + g + 8 * half) * Shared::kLd + 8 * t +
                                   2 * q) = make_float2(sums[t][2 * half], sums[t][2 * half + 1]);
      }
    }
    wait_copies<0>();  // B is here
    __syncthreads();
    {
      const int row = thread / 16, rank = thread % 16 * kRun;
      Pack<float, kRun> sum{};
#pragma unroll
      for (int i = 0; i < kWarps; ++i) {
        const auto part = *reinterpret_cast<const Pack<float, kRun>*>(
            parts + (i * kHalfRows + row) * Shared::kLd + rank);
#pragma unroll
        for (int j = 0; j < kRun; ++j) sum.values[j] += part.values[j];
      }
      Pack<T, kRun> rounded;
#pragma unroll
      for (int j = 0; j < kRun; ++j) {
        if (rank + j >= args.rank) sum.values[j] = 0;  // what lay there
        rounded.values[j] = from_float<T>(args.scaling * sum.values[j]);
      }
      *reinterpret_cast<Pack<T, kRun>*>(scaled + row * kRanks + rank) = rounded;
      if (args.h != nullptr && blockIdx.y == 0 && now + row < rows) {
#pragma unroll
        for (int j = 0; j < kRun; ++j) {
          if (rank + j < args.rank)
            args.h[std::int64_t{now + row} * args.rank + rank + j] = sum.values[j];
        }
      }
    }
    if (!has_b) {
      has_b = true;
      if constexpr (kAlong) {
#pragma unroll
        for (int i = 0; i < kRanks / 2; ++i) {
          const uint2 four = *reinterpret_cast<const uint2*>(b + (32 * i + lane) * 4);
          expand[i / 8][i % 8][0] = four.x, expand[i / 8][i % 8][1] = four.y;
        }
      } else {
        const int chunk = g % 2 * 4 + g / 2;
#pragma unroll
        for (int i = 0; i < kRanks / 16; ++i) {
          uint4 four[4];
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            four[j] = uint4{0, 0, 0, 0};
            if (16 * i + 4 * q < args.rank)
              four[j] =
                  *reinterpret_cast<const uint4*>(b + Shared::b_at(16 * i + 4 * q + j, 8 * chunk));
          }
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const uint4 &low = four[2 * j], &high = four[2 * j + 1];
            expand[i][0][j] = __byte_perm(low.x, high.x, 0x5410),
            expand[i][1][j] = __byte_perm(low.x, high.x, 0x7632);
            expand[i][2][j] = __byte_perm(low.y, high.y, 0x5410),
            expand[i][3][j] = __byte_perm(low.y, high.y, 0x7632);
            expand[i][4][j] = __byte_perm(low.z, high.z, 0x5410),
            expand[i][5][j] = __byte_perm(low.z, high.z, 0x7632);
            expand[i][6][j] = __byte_perm(low.w, high.w, 0x5410),
            expand[i][7][j] = __byte_perm(low.w, high.w, 0x7632);
          }
        }
      }
    }
    __syncthreads();
    if (has_cols) {
      float results[8][4] = {};
#pragma unroll
      for (int i = 0; i < kRanks / 16; ++i) {
        const uint2 top = *reinterpret_cast<const uint2*>(scaled + g * kRanks + 16 * i + 4 * q);
        const uint2 low =
            *reinterpret_cast<const uint2*>(scaled + (g + 8) * kRanks + 16 * i + 4 * q);
        const std::uint32_t left[4] = {top.x, low.x, top.y, low.y};
#pragma unroll
        for (int t = 0; t < 8; ++t) mma<T>(results[t], left, expand[i][t]);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (now + g + 8 * half >= rows) continue;
        T* const y =
            static_cast<T*>(args.y) + (now + g + 8 * half) * args.y_stride + my_col + 8 * q;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (my_col + 8 * q + 32 * i >= args.cols) continue;
          auto* const to = reinterpret_cast<Pack<T, 8>*>(y + 32 * i);
          Pack<T, 8> pack;
          if (args.accumulate) pack = *to;
#pragma unroll
          for (int t = 0; t < 8; ++t) {
            float value = results[t][2 * half + i];
            if (args.accumulate) value += to_float(pack.values[t]);
            pack.values[t] = from_float<T>(value);
          }
          *to = pack;
        }
      }
    }
    if (first >= rows) return;
    if (args.depth > kAtOnce) {
      wait_copies<0>();
      __syncwarp();
    }
  }
}

}  // namespace graft::cuda::small
