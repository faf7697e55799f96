#pragma once

#include <cuda.h>

#include <cstdint>

#include "backend/cuda/mma.cuh"
#include "backend/cuda/sm90.cuh"
#include "product/cuda/ampere_operand.cuh"
#include "product/cuda/hopper_rows.h"

// h = x·S of few and middling rows, by a launch before the product of hopper_rows.cu, which reads W
// meanwhile and waits for h only when it has summed over all of K:
//
//                     S (64, 16) of a step
//                    ┌─────┐
//      x (16, 64)    └─────┘
//     ┌───────────┐  ┌─────┐
//     │           │  │  h  │  a warp; the next step is the next warp's
//     └───────────┘  └─────┘
//
// It should be over soon and be in nobody's way, so that there are many small blocks, each with 16
// rows, 16 ranks and a part of K: all that a warp needs is on its way at once. The warps' sums are
// added up in shared memory, and those of the parts by who reads them. 64 rows of 4096 features are
// 32 blocks, with 32 KB each of x and S.

namespace graft::cuda::hopper_rows {

using namespace ampere;

// How S lies in memory and in a slot: rows along K, in boxes of 128 bytes; or rows along its ranks
// without gaps, which come as they are; or in a way that TMA can't take.
enum class Along : std::uint8_t { kNone, kK, kRanks };

struct ShrinkMaps {
  CUtensorMap x, s;
};

struct ShrinkArguments {
  int m = 0, k = 0;
  int steps = 0;  // of K
  int rank = 0;
  int rank_bits = 0;  // log2 of the ranks that there is room for: 16, 32 or 64
  int slot_bytes = 0;
  Operand shrink;  // S as (rank, K)
  Along along = Along::kNone;
  bool odd = false;        // S can't be read as matrices
  float* parts = nullptr;  // (parts of K, M, ranks that there is room for)
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// S as (rank, K) as the matrix units take it, of which `left` of K exist.
__device__ inline void cut(std::uint32_t (&a)[4], int left, int lane) {
  if (left >= 16) return;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int first = lane % 4 * 2 + i / 2 * 8;
    if (first >= left) a[i] = 0;
    if (first + 1 >= left) a[i] &= 0xffffu;
  }
}

// What a warp does: hᵀ = Sᵀ · xᵀ of 16 rows, 16 ranks and every so many-th step.
template <class T>
struct Shrinker {
  const ShrinkArguments& args;
  int r0, lane;
  int size;  // of S's elements
  bool floats, along_k;

  __device__ Shrinker(const ShrinkArguments& arguments, int first_rank, int of_lane)
      : args(arguments), r0(first_rank), lane(of_lane) {
    floats = args.shrink.dtype == DType::kFloat32;
    along_k = args.along != Along::kRanks;
    size = floats ? 4 : 2;
  }

  // Element (r, k) of S in a slot. Along K rows are swizzled.
  __device__ int place(int r, int k) const {
    if (!along_k) return (k * args.rank + r) * size;
    const int column = k * size;
    return column / kRowBytes * (kRowBytes << args.rank_bits) + r * kRowBytes +
           ((column % kRowBytes) ^ (r % 8 << 4));
  }

  // What TMA couldn't fetch.
  __device__ void copy(std::uint32_t s, int k0) const {
#pragma unroll 4
    for (int i = lane; i < kStep * kShrinkRanks; i += 32) {
      const int r = r0 + i % kShrinkRanks, k = i / kShrinkRanks;
      const bool exists = r < args.rank && k0 + k < args.k;
      const char* const from =
          static_cast<const char*>(args.shrink.data) +
          (r * args.shrink.outer + std::int64_t{k0 + k} * args.shrink.inner) * size;
      if (floats) {
        const float value = exists ? *reinterpret_cast<const float*>(from) : 0.0f;
        asm volatile("st.shared.f32 [%0], %1;" ::"r"(s + place(r, k)), "f"(value) : "memory");
      } else {
        const std::uint16_t value = exists ? *reinterpret_cast<const std::uint16_t*>(from) : 0;
        asm volatile("st.shared.b16 [%0], %1;" ::"r"(s + place(r, k)), "h"(value) : "memory");
      }
    }
    __syncwarp();
  }

  // Elements (r, k) and (r, k + 1), rounded, as a pair.
  __device__ std::uint32_t pair(std::uint32_t s, int r, int k) const {
    const std::uint32_t first = s + place(r, k), second = s + place(r, k + 1);
    if (floats) {
      float low, high;
      asm volatile("ld.shared.f32 %0, [%1];" : "=f"(low) : "r"(first) : "memory");
      asm volatile("ld.shared.f32 %0, [%1];" : "=f"(high) : "r"(second) : "memory");
      return pack2<T>(low, high);
    }
    std::uint16_t low, high;
    asm volatile("ld.shared.b16 %0, [%1];" : "=h"(low) : "r"(first) : "memory");
    asm volatile("ld.shared.b16 %0, [%1];" : "=h"(high) : "r"(second) : "memory");
    return low | std::uint32_t{high} << 16;
  }

  // Sᵀ as mma takes it, 16 of K from k on.
  __device__ void operand(std::uint32_t (&a)[4], std::uint32_t s, int k) const {
    if (args.odd) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        a[i] = pair(s, r0 + lane / 4 + i % 2 * 8, k + lane % 4 * 2 + i / 2 * 8);
      }
      return;
    }
    // Of four matrices, ranks 0-7 and 8-15 of the first eight of K, then of the others, each lane
    // has a row.
    const int i = lane / 8, low = lane % 8;
    if (along_k) {
      load_matrices(a, s + place(r0 + i % 2 * 8 + low, k + i / 2 * 8));
    } else {
      load_matrices_turned(a, s + place(r0 + i % 2 * 8, k + i / 2 * 8 + low));
    }
  }

  // Adds a step that is in a slot, x and behind it S, to the sums of two eights of rows.
  __device__ void add_step(float (&sum)[2][4], std::uint32_t slot, int step) const {
    const std::uint32_t s = slot + kShrinkRows * kRowBytes;
    if (args.along == Along::kNone) copy(s, step * kStep);
    const int i = lane / 8, low = lane % 8, left = args.k - step * kStep;
#pragma unroll 2
    for (int k = 0; k < kStep; k += 16) {
      std::uint32_t x[4];  // two eights of rows, each of two eights of K
      load_matrices(x, slot + (i / 2 * 8 + low) * kRowBytes + ((k * 2 + i % 2 * 16) ^ (low << 4)));
      std::uint32_t a[4];
      operand(a, s, k);
      cut(a, left - k, lane);
      mma<T>(sum[0], a, {x[0], x[1]});
      mma<T>(sum[1], a, {x[2], x[3]});
    }
  }

  // Leaves the sums at `to`, (16 rows, 16 ranks).
  __device__ void leave(const float (&sum)[2][4], std::uint32_t to) const {
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const int row = e / 4 * 8 + lane % 4 * 2 + e % 2, r = lane / 4 + e % 4 / 2 * 8;
      asm volatile("st.shared.f32 [%0], %1;" ::"r"(to + (row * kShrinkRanks + r) * 4),
                   "f"(sum[e / 4][e % 4])
                   : "memory");
    }
  }
};

#endif

// Block (part of K, 16 rows, 16 ranks).
template <class T>
__global__ void __launch_bounds__(kShrinkWarps * 32, 3)
    shrink(const __grid_constant__ ShrinkMaps maps, const __grid_constant__ ShrinkArguments args) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) unsigned char shared[];
  const int warps = static_cast<int>(blockDim.x) / 32;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int part = static_cast<int>(blockIdx.x), parts = static_cast<int>(gridDim.x);
  const int row0 = static_cast<int>(blockIdx.y) * kShrinkRows;
  const int r0 = static_cast<int>(blockIdx.z) * kShrinkRanks;
  const int begin = static_cast<int>(std::int64_t{args.steps} * part / parts);
  const int end = static_cast<int>(std::int64_t{args.steps} * (part + 1) / parts);
  const auto slot_of = [&](int of_warp, int turn) {
    return shared_address(shared) + (of_warp * kShrinkSlots + turn) * args.slot_bytes;
  };
  const auto full = [&](int turn) {
    return Barrier{slot_of(warps, 0) + (warp * kShrinkSlots + turn) * 8};
  };
  if (lane == 0) {
    for (int turn = 0; turn < kShrinkSlots; ++turn) full(turn).init(1);
    publish_barriers();
    if (warp == 0) {
      prefetch(maps.x);
      if (args.along == Along::kK) prefetch(maps.s);
    }
  }
  __syncwarp();
  wait_for_kernel_before();
  let_next_kernel_start();

  const Shrinker<T> shrinker(args, r0, lane);
  const auto fetch = [&](int step, int turn) {
    if (lane != 0 || step >= end) return;
    const int ranks = 1 << args.rank_bits;
    const std::uint32_t slot = slot_of(warp, turn), s = slot + kShrinkRows * kRowBytes;
    int s_bytes = 0;
    if (args.along == Along::kK) s_bytes = ranks * kStep * shrinker.size;
    if (args.along == Along::kRanks) {
      s_bytes = min(kStep, args.k - step * kStep) * args.rank * shrinker.size;
    }
    full(turn).arrive_and_expect(kShrinkRows * kRowBytes + s_bytes);
    load_box(slot, maps.x, full(turn), step * kStep, row0);
    if (args.along == Along::kK) {
      const int box = kRowBytes / shrinker.size;
      for (int k = 0; k < kStep; k += box) {
        load_box(s + k * ranks * shrinker.size, maps.s, full(turn), step * kStep + k, 0);
      }
    } else if (args.along == Along::kRanks) {
      load_bytes(s,
                 static_cast<const char*>(args.shrink.data) +
                     std::int64_t{step} * kStep * args.rank * shrinker.size,
                 full(turn), s_bytes);
    }
  };
#pragma unroll
  for (int turn = 0; turn < kShrinkSlots; ++turn) fetch(begin + warp + turn * warps, turn);

  float sum[2][4] = {};
  Slot at{0, 0};
#pragma unroll 1
  for (int step = begin + warp; step < end; step += warps) {
    full(at.index).wait(at.parity);
    shrinker.add_step(sum, slot_of(warp, at.index), step);
    __syncwarp();
    fetch(step + kShrinkSlots * warps, at.index);
    at.advance<kShrinkSlots>();
  }
  shrinker.leave(sum, slot_of(warp, 0));
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kShrinkRows * kShrinkRanks; i += warps * 32) {
    const int row = row0 + i / kShrinkRanks, r = r0 + i % kShrinkRanks;
    if (row >= args.m) break;
    float total = 0.0f;
    for (int w = 0; w < warps; ++w) {
      float value;
      asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(slot_of(w, 0) + i * 4) : "memory");
      total += value;
    }
    args.parts[((std::int64_t{part} * args.m + row) << args.rank_bits) + r] = total;
  }
#endif
}

}  // namespace graft::cuda::hopper_rows
