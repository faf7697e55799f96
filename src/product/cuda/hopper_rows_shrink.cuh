#pragma once

#include <cstdint>

#include "backend/cuda/mma.cuh"
#include "product/cuda/hopper_rows_block.cuh"

// The shrinkers of the kernel in hopper_rows.cu: the warpgroup that makes h.

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

namespace graft::cuda::hopper_rows {

// hᵀ of a block's part of K. A unit is 16 of rank by 16 of K; the warps share those of a step, by
// rank first. A warp has no time to spare: it works out beforehand where its part of a slot lies.
template <class T, int Rows, int Columns>
struct Shrinker {
  using Size = Sizes<Rows, Columns>;
  const Block<Rows, Columns>& block;
  int lane, rank0, k0, k_stride;
  bool floats, along_k, matrices;
  int size;
  int s_at, x_at;  // in a slot, of the first unit

  __device__ Shrinker(const Block<Rows, Columns>& of, int thread) : block(of), lane(thread % 32) {
    const Arguments& args = block.args;
    const int warp = thread / 32, bits = args.rank_bits - 4;
    rank0 = (warp & ((1 << bits) - 1)) * 16;
    k0 = (warp >> bits) * 16;
    k_stride = kStep >> bits;
    floats = args.shrink.dtype == DType::kFloat32;
    size = floats ? 4 : 2;
    along_k = args.along != Along::kRanks;
    matrices = !floats && (along_k || args.rank % 8 == 0);  // rows of 16 bytes
    const int i = lane / 8, low = lane % 8;
    // Of four matrices, ranks 0-7 and 8-15 of the first eight of K, then of the others, each lane
    // has a row; of single elements, the first of its own.
    s_at = Size::kShrinkAt + (!matrices ? place(rank0 + lane / 4, k0 + lane % 4 * 2)
                              : along_k ? place(rank0 + i % 2 * 8 + low, k0 + i / 2 * 8)
                                        : place(rank0 + i % 2 * 8, k0 + i / 2 * 8 + low));
    x_at = Size::kWBytes + (i / 2 * 8 + low) * kRowBytes + ((k0 / 8 + i % 2 ^ low) << 4);
  }

  // Element (r, k) of S in a slot. Along K rows are swizzled, so that the way from a unit to the
  // next, a power of two, turns bits over.
  __device__ int place(int r, int k) const {
    if (!along_k) return (k * block.args.rank + r) * size;
    const int column = k * size;
    return column / kRowBytes * (kRowBytes << block.args.rank_bits) + r * kRowBytes +
           ((column % kRowBytes) ^ (r % 8 << 4));
  }

  // What TMA couldn't fetch.
  __device__ void copy(std::uint32_t s, int k_first, int k_in_step) const {
    const Arguments& args = block.args;
    const int r = rank0 + lane / 2, k = k_in_step + lane % 2 * 8;
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const char* const from =
          static_cast<const char*>(args.shrink.data) +
          (r * args.shrink.outer + (k_first + k + e) * args.shrink.inner) * size;
      const bool exists = r < args.rank && k_first + k + e < args.k;
      const std::uint32_t to = s + place(r, k + e);
      if (floats) {
        const float value = exists ? *reinterpret_cast<const float*>(from) : 0.0f;
        asm volatile("st.shared.f32 [%0], %1;" ::"r"(to), "f"(value) : "memory");
      } else {
        const std::uint16_t value = exists ? *reinterpret_cast<const std::uint16_t*>(from) : 0;
        asm volatile("st.shared.b16 [%0], %1;" ::"r"(to), "h"(value) : "memory");
      }
    }
    __syncwarp();
  }

  // Elements (r, k) and (r, k + 1), at `at`, as a pair.
  __device__ std::uint32_t pair(std::uint32_t at) const {
    const std::uint32_t next = along_k ? size : block.args.rank * size;
    if (floats) {
      float low, high;
      asm volatile("ld.shared.f32 %0, [%1];" : "=f"(low) : "r"(at) : "memory");
      asm volatile("ld.shared.f32 %0, [%1];" : "=f"(high) : "r"(at + next) : "memory");
      return pack2<T>(low, high);
    }
    std::uint16_t low, high;
    asm volatile("ld.shared.b16 %0, [%1];" : "=h"(low) : "r"(at) : "memory");
    asm volatile("ld.shared.b16 %0, [%1];" : "=h"(high) : "r"(at + next) : "memory");
    return low | std::uint32_t{high} << 16;
  }

  // Sᵀ of a unit, 16 ranks by 16 of K, as mma takes it, from `s`.
  __device__ void operand(std::uint32_t (&a)[4], std::uint32_t s) const {
    if (matrices) {
      if (along_k) {
        load_matrices(a, s);
      } else {
        load_matrices_turned(a, s);
      }
      return;
    }
    // Eight ranks and eight of K on.
    const std::uint32_t down = along_k ? 8 * kRowBytes : 8 * size;
    const std::uint32_t on = along_k ? s ^ (8 * size) : s + 8 * block.args.rank * size;
    a[0] = pair(s), a[1] = pair(s + down), a[2] = pair(on), a[3] = pair(on + down);
  }

  __device__ void run(float (&sum)[Rows / 8][4]) const {
    Slot at{0, 0};
#pragma unroll 1
    for (int i = 0, step = block.first; i < block.steps(); ++i, step = block.after(step)) {
      block.full(at.index).wait(at.parity);
      const std::uint32_t slot = block.slot(at.index);
#pragma unroll 1
      for (int k = 0; k < kStep - k0; k += k_stride) {
        std::uint32_t s = slot + s_at + (along_k ? 0 : k * block.args.rank * size);
        if (along_k) {
          const int column = k * size;  // whole rows on, and what is left turns bits over
          s = (s + column / kRowBytes * (kRowBytes << block.args.rank_bits)) ^ column % kRowBytes;
        }
        if (block.args.along == Along::kNone) {
          copy(slot + Size::kShrinkAt, step * kStep, k0 + k);
        }
        std::uint32_t a[4], b[Rows / 16][4];
        operand(a, s);
        const std::uint32_t x = (slot + x_at) ^ (k * 2);
#pragma unroll
        for (int j = 0; j < Rows / 16; ++j) load_matrices(b[j], x + j * 16 * kRowBytes);
        const int left = block.args.k - step * kStep - k0 - k;
        if (left < 16) {  // behind the last of K is not S
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int first = lane % 4 * 2 + e / 2 * 8;
            if (first >= left) a[e] = 0;
            if (first + 1 >= left) a[e] &= 0xffffu;
          }
        }
#pragma unroll
        for (int j = 0; j < Rows / 16; ++j) {
          mma<T>(sum[2 * j], a, {b[j][0], b[j][1]});
          mma<T>(sum[2 * j + 1], a, {b[j][2], b[j][3]});
        }
      }
      __syncwarp();
      if (lane == 0) block.empty(at.index).arrive();
      at.advance(block.args.slots);
    }
  }
};

template <class T, int Rows, int Columns>
__device__ void shrink(const Block<Rows, Columns>& block, int thread) {
  using Size = Sizes<Rows, Columns>;
  const int bits = block.args.rank_bits, ranks = block.ranks();
  const int lane = thread % 32, warp = thread / 32;
  float sum[Rows / 8][4] = {};
  Shrinker<T, Rows, Columns>(block, thread).run(sum);
  named_sync(1, Size::kConsumers);  // the ring is free
  const int r = (warp & ((1 << (bits - 4)) - 1)) * 16 + lane / 4;
  std::uint32_t to = block.shared + Size::kPartsAt +
                     (((warp >> (bits - 4)) * Rows + lane % 4 * 2) * ranks + r) * 4;
#pragma unroll
  for (int j = 0; j < Rows / 8; ++j) {
    if (j * 8 >= block.rows) break;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      asm volatile("st.shared.f32 [%0], %1;" ::"r"(to + (e % 2 * ranks + e / 2 * 8) * 4),
                   "f"(sum[j][e])
                   : "memory");
    }
    to += 8 * ranks * 4;
  }
}

}  // namespace graft::cuda::hopper_rows

#endif
