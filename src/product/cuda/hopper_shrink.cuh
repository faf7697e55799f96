#pragma once

#include <cstdint>

#include "backend/cuda/sm90.cuh"
#include "backend/cuda/wgmma.cuh"
#include "product/cuda/hopper_block.cuh"
#include "product/cuda/hopper_fetch.cuh"
#include "product/cuda/hopper_masks.cuh"

// h = x·S of wide ranks, or of an x that is masked, before the kernel of hopper.cu, which then
// finds s·h where it would else have made it:
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
// An x that is masked (hopper_masks.cuh has the bits) goes through registers on its way to the
// matrix units, of any rank above 16; the factor of what is kept is part of h's.
//
// The next kernel, the product, may take the place of these blocks one by one; it begins with what
// needs no h. Some clusters of this kernel copy what TMA could not fetch as it lies.

namespace graft::cuda::hopper {

struct ShrinkShape {
  int copy_blocks;  // the first ones, whole clusters, that copy E
  int pair, splits;
  bool after_masks;  // the kernel before makes masks alone, and lets this one start before it ends
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

template <class T, int Width, bool SIsKN, bool Masked>
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

  // Mask bits of a slot's x (128, 64).
  __device__ std::uint32_t masks_of(int slot) const {
    return block.shared + Size::kStaging + slot * kMaskBytes;
  }

  // One thread: fills the ring. Masks may be what the kernel before is still making, and come last
  // while the ring is filled for the first time.
  __device__ void fetch() const {
    const int first_round = min(begin() + Size::kSlots, end());
    Slot at{0, 1};
    for (int step = begin(); step < first_round; ++step) fetch_step(at, step);
    if constexpr (Masked) {
      wait_for_kernel_before();
      for (int step = begin(); step < first_round; ++step) fetch_masks(step - begin(), step);
    }
    for (int step = first_round; step < end(); ++step) {
      const int slot = at.index;
      fetch_step(at, step);
      if constexpr (Masked) fetch_masks(slot, step);
    }
  }

  __device__ void fetch_masks(int slot, int step) const {
    load_bytes(masks_of(slot), masks_at(args.masks, args, row_block(), step), block.full(slot),
               kMaskBytes);
  }

  __device__ void fetch_step(Slot& at, int step) const {
    const auto both = static_cast<std::uint16_t>(((1 << pair) - 1) << block_of(part(), 0));
    const Barrier full = block.full(at.index);
    const std::uint32_t slot = block.slot(at), s = slot + kXBytes;
    block.empty(at.index).wait(at.parity);
    full.arrive_and_expect(Size::kSlotBytes + (Masked ? kMaskBytes : 0));
    load_box(slot, maps.x, full, step * kTileK, row_block() * kTileM);
    // Half of S for both, or all of it.
    for (int half = member(); half < 2; half += pair) {
      const int column = half * (Width / 2);
      if constexpr (SIsKN && Width == 64) {
        // One box of 64 columns: half of its rows.
        load_box(s + half * (kBoxBytes / 2), maps.s, full, 0, step * kTileK + half * (kTileK / 2),
                 both);
      } else if constexpr (SIsKN) {
#pragma unroll
        for (int i = 0; i < Width / 2; i += 64) {
          load_box(s + (column + i) * kRowBytes, maps.s, full, column + i, step * kTileK, both);
        }
      } else {
        load_box(s + column * kRowBytes, maps.s, full, step * kTileK, column, both);
      }
    }
    at.advance<Size::kSlots>();
  }

  // By each warp: others may not have read all of it.
  __device__ void release(int slot, int thread) const {
    if (thread % 32 < pair) block.empty(slot).arrive_at(block_of(part(), thread % 32));
  }

  // Warpgroups 1 and 2: 64 rows each.
  __device__ void multiply(float (&sum)[Width / 2], int half, int thread) const {
    std::uint32_t even[4][4], odd[4][4];
    Slot at{0, 0};
    int before = 0, step = begin();
    for (; step + 1 < end(); step += 2) {
      multiply_step(sum, even, at, before, step == begin(), half, thread);
      multiply_step(sum, odd, at, before, false, half, thread);
    }
    if (step < end()) multiply_step(sum, even, at, before, step == begin(), half, thread);
    wgmma_wait<0>();
  }

  // Those of x that are masked go through registers, `a`: in turns, since the products of the step
  // before still read theirs.
  __device__ void multiply_step(float (&sum)[Width / 2], std::uint32_t (&a)[4][4], Slot& at,
                                int& before, bool first, int half, int thread) const {
    block.full(at.index).wait(at.parity);
    const std::uint32_t slot = block.slot(at);
    const std::uint64_t s = tile_descriptor(slot + kXBytes, SIsKN ? kBoxBytes : 16);
    if constexpr (Masked) {
      const int lane = thread % 32, warp_row = half * kHalfM + thread / 32 * 16;
      const int row = warp_row + lane % 16;
      const std::uint32_t from = slot + row * kRowBytes + ((lane / 16 ^ row % 8) << 4);
#pragma unroll
      for (int i = 0; i < 4; ++i) load_matrices(a[i], from ^ (i * 32));
      mask_rows(a, masks_of(at.index) + (warp_row + lane / 4) * 8, thread);
    }
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kTileK / 16; ++i) {
      const std::uint64_t b = s + i * (SIsKN ? 128 : 2);
      if constexpr (Masked) {
        wgmma<Width, SIsKN, T>(sum, a[i], b, !first || i > 0);
      } else {
        const std::uint64_t x = tile_descriptor(slot + half * kHalfXBytes, 16);
        wgmma<Width, SIsKN, T>(sum, x + i * 2, b, !first || i > 0);
      }
    }
    wgmma_commit();
    if (!first) {
      wgmma_wait<1>();
      release(before, thread);
    }
    before = at.index;
    at.advance<Size::kSlots>();
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

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// The share of a thread of a copy whose rows lie across the memory of its matrix: eight rows and
// eight of their elements at a time, so that what is read is dense as well as what is written.
template <class From, class To>
__device__ void copy_turned_as(const Copy& copy, unsigned first, unsigned step) {
  const From* const from = static_cast<const From*>(copy.from);
  const bool dense = copy.outer_stride == 1 && copy.outer % 8 == 0 &&
                     copy.inner_stride * sizeof(From) % 16 == 0 &&
                     reinterpret_cast<std::uintptr_t>(from) % 16 == 0;
  if (!dense) return copy_share_as<From, To>(copy, first, step);
  const unsigned down = static_cast<unsigned>(copy.outer) / 8;
  const unsigned across = static_cast<unsigned>(copy.stride) / 8;
  // Neighbours write 32 bytes of a row together.
  for (unsigned i = first; i < down * ((across + 1) / 2 * 2); i += step) {
    const unsigned row = i / 2 % down * 8, chunk = i / 2 / down * 2 + i % 2;
    if (chunk >= across) continue;
    Pack<To, 8> in[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int at = static_cast<int>(chunk) * 8 + j;
      Pack<From, 8> read{};
      if (at < copy.inner) {
        read = *reinterpret_cast<const Pack<From, 8>*>(from + row + at * copy.inner_stride);
      }
#pragma unroll
      for (int r = 0; r < 8; ++r) in[j].values[r] = from_float<To>(to_float(read.values[r]));
    }
#pragma unroll
    for (int r = 0; r < 8; ++r) {
      Pack<To, 8> out;
#pragma unroll
      for (int j = 0; j < 8; ++j) out.values[j] = in[j].values[r];
      *reinterpret_cast<Pack<To, 8>*>(static_cast<To*>(copy.to) +
                                      std::int64_t{row + r} * copy.stride + chunk * 8) = out;
    }
  }
}

// The share of a thread, one of so many blocks.
template <class To>
__device__ void copy_turned(const Copy& copy, unsigned blocks) {
  const unsigned first = blockIdx.x * blockDim.x + threadIdx.x, step = blocks * blockDim.x;
  switch (copy.dtype) {
    case DType::kFloat16:
      return copy_turned_as<__half, To>(copy, first, step);
    case DType::kBFloat16:
      return copy_turned_as<__nv_bfloat16, To>(copy, first, step);
    default:
      return copy_turned_as<float, To>(copy, first, step);
  }
}

#endif

// Copies what TMA can't fetch as it lies: the first `of_s` copies.
template <class T>
__global__ void __launch_bounds__(kCopyThreads) copy_shrink(const __grid_constant__ Copies copies) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  wait_for_kernel_before();
  let_next_kernel_start();
  for (int i = 0; i < copies.of_s; ++i) copy_turned<T>(copies.list[i], gridDim.x);
  fence_async();
#endif
}

template <class T, int Width, bool SIsKN, bool Masked>
__global__ void __launch_bounds__(kThreads, 1)
    shrink(const __grid_constant__ Maps maps, const __grid_constant__ Arguments args,
           const ShrinkShape shape) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Size = Sizes<Width>;
  extern __shared__ __align__(1024) unsigned char shared[];
  const int pair = shape.pair, splits = shape.splits;
  const Block<Width> block{shared_address(shared), static_cast<int>(cluster_rank()),
                           (static_cast<int>(blockIdx.x) - shape.copy_blocks) / (pair * splits)};
  const Shrinker<T, Width, SIsKN, Masked> shrinker{maps, args, block, pair, splits};
  if (threadIdx.x == 0) {
    for (int i = 0; i < Size::kSlots; ++i) {
      block.full(i).init(1);
      block.empty(i).init(8 * pair);  // the warps that multiply, of each block of the pair
    }
    publish_barriers();
    prefetch(maps.x);
    prefetch(maps.s);
  }
  // Of masks, who fetches them waits, or who fetches none: when this kernel has ended, so have
  // they.
  if (!shape.after_masks) wait_for_kernel_before();
  let_next_kernel_start();
  if (static_cast<int>(blockIdx.x) < shape.copy_blocks) {  // E, which the product's tiles end with
    for (int i = args.copies.of_s; i < args.copies.of_pair; ++i) {
      copy_turned<T>(args.copies.list[i], shape.copy_blocks);
    }
    fence_async();
    return;
  }
  cluster_sync();

  const int warpgroup = static_cast<int>(threadIdx.x) / 128;
  const int half = warpgroup - 1, thread = static_cast<int>(threadIdx.x) % 128;
  if (warpgroup == 0) {
    shrink_registers<56>();
    if (thread == 0) {
      shrinker.fetch();
      if (!Masked && shape.after_masks) wait_for_kernel_before();
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
