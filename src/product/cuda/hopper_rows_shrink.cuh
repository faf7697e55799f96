#pragma once

#include <cstdint>

#include "backend/cuda/mma.cuh"
#include "product/cuda/hopper_rows_block.cuh"

// The shrinkers of the kernel in hopper_rows.cu: the warpgroup that makes h.

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

namespace graft::cuda::hopper_rows {

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

// hᵀ of a block's part of K: Sᵀ · xᵀ, like yᵀ, but with Sᵀ in registers. A warp has 16 of the
// matrix units' 64 rows, which are ranks; warps that have none put zeros there. The time from a
// step's arrival to its products is what bounds this: while a step is multiplied, the next one's S
// is read, from addresses that are worked out beforehand.
template <class T, int Rows, int Columns>
struct Shrinker {
  const Block<Rows, Columns>& block;
  int lane, rank0;
  int s_at, s_way;  // in a slot, of the first 16 of K; to the next

  __device__ Shrinker(const Block<Rows, Columns>& of, int thread)
      : block(of), lane(thread % 32), rank0(thread / 32 * 16) {
    const Arguments& args = block.args;
    // Of four matrices, ranks 0-7 and 8-15 of the first eight of K, then of the others, each lane
    // has a row.
    const int i = lane / 8, low = lane % 8, k = i / 2 * 8, r = rank0 + i % 2 * 8;
    s_way = args.rank * 32;
    s_at = block.shrink_at() + (args.along != Along::kRanks
                                    ? (r + low) * kRowBytes + ((k * 2) ^ (low << 4))
                                    : (k + low) * s_way / 16 + r * 2);
  }

  // S of a step to registers.
  __device__ void load(std::uint32_t (&s)[kStep / 16][4], std::uint32_t slot, int step) const {
    if (rank0 >= block.ranks()) return;
    if (block.args.along != Along::kRanks) {
#pragma unroll
      for (int j = 0; j < kStep / 16; ++j) load_matrices(s[j], slot + (s_at ^ (j * 32)));
    } else {
#pragma unroll
      for (int j = 0; j < kStep / 16; ++j) load_matrices_turned(s[j], slot + s_at + j * s_way);
    }
    const int left = block.args.k - step * kStep;
    if (left >= kStep) return;
#pragma unroll
    for (int j = 0; j < kStep / 16; ++j) cut(s[j], left - j * 16, lane);
  }

  template <int Width>
  __device__ void run(float (&sum)[Rows / 2]) const {
    Slot at{0, 0};
    int step = block.first, before = 0;
    std::uint32_t s[2][kStep / 16][4] = {};
#pragma unroll 1
    for (int first = 0; first < block.steps(); first += 2) {
#pragma unroll
      for (int turn = 0; turn < 2; ++turn) {
        const int i = first + turn;
        if (i == block.steps()) break;
        block.full(at.index).wait(at.parity);
        const std::uint32_t slot = block.slot(at.index);
        load(s[turn], slot, step);
        const std::uint64_t x = tile_descriptor(slot, 16);
        wgmma_fence();
#pragma unroll
        for (int j = 0; j < kStep / 16; ++j) {
          wgmma<Width, false, T>(sum, s[turn][j], x + j * 2, i > 0 || j > 0);
        }
        wgmma_commit();
        wgmma_wait<1>();
        if (i > 0 && lane == 0) block.empty(before).arrive();
        before = at.index;
        at.advance(block.args.slots);
        step = block.after(step);
      }
    }
    wgmma_wait<0>();
  }
};

// The same of S as floats, in rows that are no whole 16 bytes, or that TMA couldn't fetch: by
// mma.sync, for which S is put together from single elements. A unit is 16 ranks by 16 of K. The
// warps share the ranks, and what is left of them goes round the steps: a warp makes all four units
// of its step, so that they hide each other's latency, and works out beforehand where its part of a
// slot lies.
template <class T, int Rows, int Columns>
struct OddShrinker {
  const Block<Rows, Columns>& block;
  int lane, rank0;
  int turn, turns;  // steps turn, turn + turns, ... are this warp's
  bool floats, along_k;
  int size;
  int s_at, x_at;  // in a slot, of the first unit

  __device__ OddShrinker(const Block<Rows, Columns>& of, int thread)
      : block(of), lane(thread % 32) {
    const Arguments& args = block.args;
    const int warp = thread / 32, bits = args.rank_bits - 4;
    rank0 = (warp & ((1 << bits) - 1)) * 16;
    turn = warp >> bits;
    turns = 4 >> bits;
    floats = args.shrink.dtype == DType::kFloat32;
    size = floats ? 4 : 2;
    along_k = args.along != Along::kRanks;
    const int i = lane / 8, low = lane % 8;
    s_at = block.shrink_at() + place(rank0 + lane / 4, lane % 4 * 2);
    x_at = (i / 2 * 8 + low) * kRowBytes + ((i % 2 ^ low) << 4);
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

  // Sᵀ of a unit as mma takes it, of the slot at `slot`.
  __device__ void operand(std::uint32_t (&a)[4], std::uint32_t slot, int unit) const {
    std::uint32_t s = slot + s_at;
    if (along_k) {
      const int column = unit * 16 * size;  // whole rows on, and what is left turns bits over
      s = (s + column / kRowBytes * (kRowBytes << block.args.rank_bits)) ^ column % kRowBytes;
    } else {
      s += unit * 16 * block.args.rank * size;
    }
    // Eight ranks and eight of K on.
    const std::uint32_t down = along_k ? 8 * kRowBytes : 8 * size;
    const std::uint32_t on = along_k ? s ^ (8 * size) : s + 8 * block.args.rank * size;
    a[0] = pair(s), a[1] = pair(s + down), a[2] = pair(on), a[3] = pair(on + down);
  }

  // A part of a unit is its 16 of K by 32 rows of x, of which those are read that there are. While
  // one is multiplied, the next is read.
  static constexpr int kParts = Rows / 32;

  __device__ void load_x(std::uint32_t (&b)[2][4], std::uint32_t slot, int at) const {
    const std::uint32_t x = (slot + x_at) ^ (at / kParts * 32);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int row = at % kParts * 32 + j * 16;
      if (row < block.rows) load_matrices(b[j], x + row * kRowBytes);
    }
  }

  __device__ void make_step(float (&sum)[Rows / 8][4], std::uint32_t slot, int step) const {
    constexpr int kUnits = kStep / 16;
    const int left = block.args.k - step * kStep;
    if (block.args.along == Along::kNone) {
#pragma unroll 1
      for (int unit = 0; unit < kUnits; ++unit) {
        copy(slot + block.shrink_at(), step * kStep, unit * 16);
      }
    }
    constexpr int kBuffers = Columns > 64 ? 1 : 2;  // as registers allow
    std::uint32_t a[kBuffers][4], b[kBuffers][2][4];
    const auto load = [&](int at) {
      if (at % kParts == 0) operand(a[at / kParts % kBuffers], slot, at / kParts);
      load_x(b[at % kBuffers], slot, at);
    };
    if (kBuffers == 2) load(0);
#pragma unroll
    for (int at = 0; at < kUnits * kParts; ++at) {
      const int next = at + kBuffers - 1, unit = at / kParts;
      if (next < kUnits * kParts) load(next);
      if (at % kParts == 0) cut(a[unit % kBuffers], left - unit * 16, lane);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int row = at % kParts * 32 + j * 16;
        if (row >= block.rows) continue;
        const auto& x = b[at % kBuffers][j];
        mma<T>(sum[row / 8], a[unit % kBuffers], {x[0], x[1]});
        mma<T>(sum[row / 8 + 1], a[unit % kBuffers], {x[2], x[3]});
      }
    }
  }

  __device__ void run(float (&sum)[Rows / 8][4]) const {
    Slot at{0, 0};
    int step = block.first;
    const auto advance = [&](int steps) {
      for (int i = 0; i < steps; ++i) {
        at.advance(block.args.slots);
        step = block.after(step);
      }
    };
    advance(turn);
#pragma unroll 1
    for (int i = turn; i < block.steps(); i += turns) {
      block.full(at.index).wait(at.parity);
      make_step(sum, block.slot(at.index), step);
      __syncwarp();
      if (lane == 0) block.empty(at.index).arrive();
      advance(turns);
    }
  }
};

template <class T, int Width, int Rows, int Columns>
__device__ void shrink(const Block<Rows, Columns>& block, int thread) {
  using Size = Sizes<Rows, Columns>;
  const std::uint32_t left = block.shared + Size::kHAt;
  if (block.args.odd) {
    float sum[Rows / 8][4] = {};
    OddShrinker<T, Rows, Columns>(block, thread).run(sum);
    named_sync(1, Size::kConsumers);  // the ring is free
    leave<Rows>(block, left, reinterpret_cast<const float(&)[Rows / 2]>(sum), thread);
  } else {
    float sum[Rows / 2];
    Shrinker<T, Rows, Columns>(block, thread).template run<Width>(sum);
    named_sync(1, Size::kConsumers);
    if (thread < block.ranks() * 2) leave<Width>(block, left, sum, thread);
  }
}

}  // namespace graft::cuda::hopper_rows

#endif
