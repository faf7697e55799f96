#pragma once

#include <cstdint>

#include "backend/cuda/sm90.cuh"
#include "backend/cuda/wgmma.cuh"
#include "product/cuda/hopper_block.cuh"
#include "product/cuda/hopper_fetch.cuh"

// h = x·S of wide ranks, before the kernel of hopper.cu, which then finds s·h where it would else
// have made it:
//
//                       S (64, r) of this step
//                      ┌─────┬─────┐
//                      │ of  │ of  │ ──> to both blocks of a pair, one below the other
//                      │ 0   │ 1   │
//                      └─────┴─────┘
//      x (128, 64)
//      ┌──┐            ┌───────────┐ rows 0-63: warpgroup 1
//      │  │ part 0     │ h         │ rows 64-127: warpgroup 2
//      └──┘   of K     └───────────┘
//      ┌──┐            ┌───────────┐
//      │  │ part 1     │ h         │ ...
//
// x is read once, and of all columns of h at once. There are a few row blocks alone (32 of 4096
// rows), so that K is cut into parts, which a cluster's blocks sum up; then each leaves its sums in
// its shared memory, and they share the columns out and add up those of all parts, in their order.
//
// 4096 rows and features and rank 256 are 8.6 GFLOP, 9.6 µs of 128 multiprocessors' matrix units;
// 34 MB of x from memory, 8 µs; and 256 KB of x and as much of S a multiprocessor from L2.
//
// The next kernel, the product, may take the place of these blocks one by one; it begins with what
// needs no h.

namespace graft::cuda::hopper {

struct ShrinkShape {
  int pair, splits;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

template <class T, int Width, bool SIsKN>
struct Shrinker {
  using Size = Sizes<Width>;
  const Maps& maps;
  const Arguments& args;
  const Block<Width>& block;  // its cluster is that of the launch
  int pair, splits;

  __device__ int member() const { return block.rank % pair; }
  __device__ int part() const { return block.rank / pair; }
  __device__ int row_block() const { return block.cluster * pair + member(); }
  __device__ int begin() const { return part() * args.k_blocks / splits; }
  __device__ int end() const { return (part() + 1) * args.k_blocks / splits; }
  __device__ int block_of(int of_part, int of_member) const { return of_part * pair + of_member; }

  // One thread: fills the ring.
  __device__ void fetch() const {
    Slot at{0, 1};
    const auto both = static_cast<std::uint16_t>(((1 << pair) - 1) << block_of(part(), 0));
    const int m0 = row_block() * kTileM;
    for (int step = begin(); step < end(); ++step) {
      const Barrier full = block.full(at.index);
      const std::uint32_t slot = block.slot(at);
      block.empty(at.index).wait(at.parity);
      full.arrive_and_expect(Size::kSlotBytes);
      load_box(slot, maps.x, full, step * kTileK, m0);
      // Half of S for both, or all of it.
      for (int half = member(); half < 2; half += pair) {
        const std::uint32_t to = slot + kXBytes + half * (Width / 2) * kRowBytes;
        const int column = half * (Width / 2);
        if constexpr (SIsKN) {
#pragma unroll
          for (int i = 0; i < Width / 2; i += 64) {
            load_box(to + i * kRowBytes, maps.s, full, column + i, step * kTileK, both);
          }
        } else {
          load_box(to, maps.s, full, step * kTileK, column, both);
        }
      }
      at.advance<Size::kSlots>();
    }
  }

  __device__ void release(int slot, int thread) const {
    if (thread < pair) block.empty(slot).arrive_at(block_of(part(), thread));
  }

  // Warpgroups 1 and 2: 64 rows each.
  __device__ void multiply(float (&sum)[Width / 2], int half, int thread) const {
    Slot at{0, 0};
    int before = 0;
    for (int step = begin(); step < end(); ++step) {
      const bool first = step == begin();
      block.full(at.index).wait(at.parity);
      const std::uint32_t slot = block.slot(at);
      const std::uint64_t a = tile_descriptor(slot + half * kHalfXBytes, 16);
      const std::uint64_t b = tile_descriptor(slot + kXBytes, SIsKN ? kBoxBytes : 16);
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < kTileK / 16; ++i) {
        wgmma<Width, SIsKN, T>(sum, a + i * 2, b + i * (SIsKN ? 128 : 2), !first || i > 0);
      }
      wgmma_commit();
      if (!first) {
        wgmma_wait<1>();
        release(before, thread);
      }
      before = at.index;
      at.advance<Size::kSlots>();
    }
    wgmma_wait<0>();
  }

  __device__ void store(int half, int thread, int eight, const float4& value) const {
    const int row = row_block() * kTileM + half * kHalfM + thread / 32 * 16 + thread % 32 / 4;
    const int column = eight * 8 + thread % 4 * 2;
    store_h<T>(args, row, column, value.x, value.y);
    store_h<T>(args, row + 8, column, value.z, value.w);
  }

  // Where the sums of an eight of columns are left, in the ring.
  __device__ std::uint32_t sums_at(int half, int thread, int eight) const {
    return block.shared + ((half * (Width / 8) + eight) * 128 + thread) * 16;
  }

  __device__ void leave(const float (&sum)[Width / 2], int half, int thread) const {
    named_sync(1, 256);  // the ring is free
#pragma unroll
    for (int i = 0; i < Width / 8; ++i) {
      asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(sums_at(half, thread, i)),
                   "f"(sum[i * 4]), "f"(sum[i * 4 + 1]), "f"(sum[i * 4 + 2]), "f"(sum[i * 4 + 3])
                   : "memory");
    }
  }

  // This block's share of the columns, two eights at a time, so that loads hide each other's time.
  template <int Parts>
  __device__ void add(int half, int thread) const {
    constexpr int kEights = Width / 8;
    const int end = (part() + 1) * kEights / Parts;
    if (row_block() * kTileM >= args.m) return;
    for (int i = part() * kEights / Parts; i < end; i += 2) {
      float4 from[2][Parts];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int p = 0; p < Parts; ++p) {
          const std::uint32_t at = sums_at(half, thread, min(i + j, end - 1));
          from[j][p] = load_there(at, block_of(p, member()));
        }
      }
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        if (i + j == end) break;
        float4 total = from[j][0];
#pragma unroll
        for (int p = 1; p < Parts; ++p) {
          total.x += from[j][p].x;
          total.y += from[j][p].y;
          total.z += from[j][p].z;
          total.w += from[j][p].w;
        }
        store(half, thread, i + j, total);
      }
    }
  }
};

#endif

// Copies what TMA can't fetch as it lies: the first `of_s` copies.
template <class T>
__global__ void __launch_bounds__(kCopyThreads) copy_shrink(const __grid_constant__ Copies copies) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  wait_for_kernel_before();
  let_next_kernel_start();
  for (int i = 0; i < copies.of_s; ++i) {
    copy_share<T>(copies.list[i], static_cast<int>(threadIdx.x));
  }
  fence_async();
#endif
}

template <class T, int Width, bool SIsKN>
__global__ void __launch_bounds__(kThreads, 1)
    shrink(const __grid_constant__ Maps maps, const __grid_constant__ Arguments args,
           const ShrinkShape shape) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Size = Sizes<Width>;
  extern __shared__ __align__(1024) unsigned char shared[];
  const int pair = shape.pair, splits = shape.splits;
  const Block<Width> block{shared_address(shared), static_cast<int>(cluster_rank()),
                           static_cast<int>(blockIdx.x) / (pair * splits)};
  const Shrinker<T, Width, SIsKN> shrinker{maps, args, block, pair, splits};
  if (threadIdx.x == 0) {
    for (int i = 0; i < Size::kSlots; ++i) {
      block.full(i).init(1);
      block.empty(i).init(2 * pair);  // two warpgroups, of each block of the pair
    }
    publish_barriers();
    prefetch(maps.x);
    prefetch(maps.s);
  }
  wait_for_kernel_before();
  let_next_kernel_start();
  cluster_sync();

  const int warpgroup = static_cast<int>(threadIdx.x) / 128;
  const int half = warpgroup - 1, thread = static_cast<int>(threadIdx.x) % 128;
  if (warpgroup == 0) {
    shrink_registers<56>();
    if (thread == 0) shrinker.fetch();
    if (thread >= 32) {  // E, which the product's tiles end with
      for (int i = args.copies.of_s; i < args.copies.count; ++i) {
        copy_share<T>(args.copies.list[i], thread - 32);
      }
      fence_async();
    }
    __syncwarp();
    if (splits > 1) cluster_sync();
  } else {
    grow_registers<224>();
    float sum[Width / 2];
    shrinker.multiply(sum, half, thread);
    if (splits == 1) {
#pragma unroll
      for (int i = 0; i < Width / 8; ++i) {
        shrinker.store(half, thread, i,
                       make_float4(sum[i * 4], sum[i * 4 + 1], sum[i * 4 + 2], sum[i * 4 + 3]));
      }
    } else {
      shrinker.leave(sum, half, thread);
      cluster_sync();
      switch (splits) {
        case 2:
          shrinker.template add<2>(half, thread);
          break;
        case 3:
          shrinker.template add<3>(half, thread);
          break;
        case 4:
          shrinker.template add<4>(half, thread);
          break;
        default:
          shrinker.template add<8>(half, thread);
      }
    }
    fence_async();  // TMA reads h
    __syncwarp();
  }
  cluster_sync();  // other blocks may still read here, or arrive
#endif
}

}  // namespace graft::cuda::hopper
