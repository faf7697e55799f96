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
// rows), and two ways to make them (hopper_shrink_plan.cc says when):
//
// - Whole: a block makes one or two row blocks, one below the other, over all of K, and a cluster's
//   blocks share what they fetch of S. A few blocks take as long as a tile of the product does,
//   which starts beside them in the other multiprocessors; theirs are for the clusters that have a
//   tile less than others. So h costs no time of its own: h of two row blocks and 128 columns, or
//   of one and 256, is as much work as a tile.
// - In parts of K, which a cluster's blocks sum up: each leaves its sums in its shared memory, and
//   they share the columns out and add up those of all parts, in their order. 4096 rows and
//   features and rank 256 are 8.6 GFLOP, 9.6 µs of 128 multiprocessors' matrix units; 34 MB of x
//   from memory, 8 µs; and 256 KB of x and as much of S a multiprocessor from L2.
//
// An x that is masked (hopper_masks.cuh has the bits) goes through registers on its way to the
// matrix units, of any rank above 16; the factor of what is kept is part of h's.
//
// The product may take the place of these blocks one by one; it begins with what needs no h.

namespace graft::cuda::hopper {

struct ShrinkShape {
  int copy_blocks;     // the first ones, whole clusters, that copy E; 0: the others do it beside
  int whole_clusters;  // the next ones, that make h whole
  int pair, splits;    // of the clusters after them
  int s_box_rows;  // of the boxes that S comes in, 64 along K as (rank, K) or 64 wide as (K, rank)
  bool after_masks;  // the kernel before makes masks alone, and lets this one start before it ends

  __host__ __device__ int size() const { return pair * splits; }
  __host__ __device__ int whole_blocks() const { return whole_clusters * size(); }
};

// What a block has in shared memory: slots of x (128 · Blocks, 64) and S (64, Width), mask bits,
// and barriers.
template <int Width, int Blocks>
struct ShrinkSizes {
  static constexpr int kSlotBytes = Blocks * kXBytes + Width * kRowBytes;
  static constexpr int kMostBytes = 226 * 1024;
  static constexpr int kSlots = kMostBytes / (kSlotBytes + Blocks * kMaskBytes);
  static constexpr int kMasks = kSlots * kSlotBytes;
  static constexpr int kFull = kMasks + kSlots * Blocks * kMaskBytes;
  static constexpr int kEmpty = kFull + kSlots * 8;
  static constexpr int kEnd = kEmpty + kSlots * 8;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// The share of a thread of a copy whose rows lie across the memory of its matrix: 16 bytes of rows
// and eight of their elements at a time, so that what is read is dense as well as what is written.
template <class From, class To>
__device__ void copy_turned_as(const Copy& copy, unsigned first, unsigned step) {
  constexpr int kRows = kPackSize<From>;
  const From* const from = static_cast<const From*>(copy.from);
  const bool dense = copy.outer_stride == 1 && copy.outer % kRows == 0 &&
                     copy.inner_stride * sizeof(From) % 16 == 0 &&
                     reinterpret_cast<std::uintptr_t>(from) % 16 == 0;
  if (!dense) return copy_share_as<From, To>(copy, first, step);
  const unsigned down = static_cast<unsigned>(copy.outer) / kRows;
  const unsigned across = static_cast<unsigned>(copy.stride) / 8;
  // Neighbours write 32 bytes of a row together.
  for (unsigned i = first; i < down * ((across + 1) / 2 * 2); i += step) {
    const unsigned row = i / 2 % down * kRows, chunk = i / 2 / down * 2 + i % 2;
    if (chunk >= across) continue;
    Pack<From, kRows> in[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int at = static_cast<int>(chunk) * 8 + j;
      in[j] = {};
      if (at < copy.inner) {
        in[j] = *reinterpret_cast<const Pack<From, kRows>*>(from + row + at * copy.inner_stride);
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      Pack<To, 8> out;
#pragma unroll
      for (int j = 0; j < 8; ++j) out.values[j] = from_float<To>(to_float(in[j].values[r]));
      *reinterpret_cast<Pack<To, 8>*>(static_cast<To*>(copy.to) +
                                      std::int64_t{row + r} * copy.stride + chunk * 8) = out;
    }
  }
}

template <class To>
__device__ void copy_turned(const Copy& copy, unsigned first, unsigned step) {
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
  for (int i = 0; i < copies.of_s; ++i) {
    copy_turned<T>(copies.list[i], blockIdx.x * kCopyThreads + threadIdx.x,
                   gridDim.x * kCopyThreads);
  }
  fence_async();
#endif
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// One block's share.
template <class T, int Width, int Blocks, bool SIsKN, bool Masked>
struct Shrinker {
  using Size = ShrinkSizes<Width, Blocks>;
  const Maps& maps;
  const Arguments& args;
  const ShrinkShape& shape;
  std::uint32_t shared;
  int rank;  // in the cluster
  int pair, splits, first_row_block;

  __device__ Shrinker(const Maps& all_maps, const Arguments& all_args, const ShrinkShape& of,
                      std::uint32_t at)
      : maps(all_maps), args(all_args), shape(of), shared(at) {
    rank = static_cast<int>(cluster_rank());
    const int size = of.size();
    const int cluster = (static_cast<int>(blockIdx.x) - of.copy_blocks) / size;
    const bool whole = cluster < of.whole_clusters;
    pair = whole ? size : of.pair, splits = whole ? 1 : of.splits;
    const int before =
        whole ? cluster * size : of.whole_clusters * size + (cluster - of.whole_clusters) * of.pair;
    first_row_block = (before + rank % pair) * Blocks;
  }

  __device__ int member() const { return rank % pair; }
  __device__ int part() const { return rank / pair; }
  __device__ int begin() const { return part() * args.k_blocks / splits; }
  __device__ int end() const { return (part() + 1) * args.k_blocks / splits; }
  __device__ int block_of(int of_part, int of_member) const { return of_part * pair + of_member; }

  __device__ Barrier full(int slot) const { return {shared + Size::kFull + slot * 8}; }
  __device__ Barrier empty(int slot) const { return {shared + Size::kEmpty + slot * 8}; }
  __device__ std::uint32_t x_of(int slot, int block) const {
    return shared + slot * Size::kSlotBytes + block * kXBytes;
  }
  __device__ std::uint32_t s_of(int slot) const { return x_of(slot, Blocks); }
  __device__ std::uint32_t masks_of(int slot, int block) const {
    return shared + Size::kMasks + (slot * Blocks + block) * kMaskBytes;
  }

  __device__ void init_barriers() const {
    for (int i = 0; i < Size::kSlots; ++i) {
      full(i).init(1);
      empty(i).init(8 * pair);  // the warps that multiply, of each block that shares S
    }
    publish_barriers();
  }

  // One thread fills the ring. The first x comes before other blocks have made their barriers, and
  // the first masks come last, which the kernel before may still be making.
  __device__ void fetch_first_x() const { fetch_x(0, begin()); }
  __device__ void fetch() const {
    const int first_round = min(Size::kSlots, end() - begin());
    for (int i = 0; i < first_round; ++i) {
      if (i > 0) fetch_x(i, begin() + i);
      fetch_s(i, begin() + i);
    }
    if constexpr (Masked) {
      wait_for_kernel_before();
      for (int i = 0; i < first_round; ++i) fetch_masks(i, begin() + i);
    }
    Slot at{0, 0};
    for (int step = begin() + first_round; step < end(); ++step) {
      empty(at.index).wait(at.parity);
      fetch_x(at.index, step);
      fetch_s(at.index, step);
      if constexpr (Masked) fetch_masks(at.index, step);
      at.advance<Size::kSlots>();
    }
  }

  __device__ void fetch_x(int slot, int step) const {
    full(slot).arrive_and_expect(Size::kSlotBytes + (Masked ? Blocks * kMaskBytes : 0));
#pragma unroll
    for (int i = 0; i < Blocks; ++i) {
      load_box(x_of(slot, i), maps.x, full(slot), step * kTileK, (first_row_block + i) * kTileM);
    }
  }
  // A share of S for all who share it. It lies as rows of 128 bytes: one a column; or, as (K,
  // rank), 64 for each 64 columns.
  __device__ void fetch_s(int slot, int step) const {
    const auto all = static_cast<std::uint16_t>(((1 << pair) - 1) << block_of(part(), 0));
    const int share = Width / pair, first = member() * share;
    for (int row = first; row < first + share; row += shape.s_box_rows) {
      const int column = SIsKN ? row / 64 * 64 : step * kTileK;
      const int from_row = SIsKN ? step * kTileK + row % 64 : row;
      load_box(s_of(slot) + row * kRowBytes, maps.s, full(slot), column, from_row, all);
    }
  }
  __device__ void fetch_masks(int slot, int step) const {
#pragma unroll
    for (int i = 0; i < Blocks; ++i) {
      // There are none of row blocks that don't exist.
      const int row_block = min(first_row_block + i, (args.m - 1) / kTileM);
      load_bytes(masks_of(slot, i), masks_at(args.masks, args, row_block, step), full(slot),
                 kMaskBytes);
    }
  }

  // By each warp: others may not have read all of it.
  __device__ void release(int slot, int thread) const {
    if (thread % 32 < pair) empty(slot).arrive_at(block_of(part(), thread % 32));
  }

  // Warpgroups 1 and 2: 64 rows each of a row block.
  __device__ void multiply(float (&sum)[Blocks][Width / 2], int half, int thread) const {
    // What is masked goes through registers: in turns, for products still read those before.
    std::uint32_t a[2][4][4];
    Slot at{0, 0};
    int step = begin();
    if constexpr (Blocks == 2) {
      for (; step < end(); ++step) {
        full(at.index).wait(at.parity);
        multiply_block(sum[0], a[0], at.index, 0, step == begin(), half, thread);
        finish_before(at.index, step, true, thread);
        multiply_block(sum[1], a[1], at.index, 1, step == begin(), half, thread);
        finish_before(at.index, step, false, thread);
        at.advance<Size::kSlots>();
      }
    } else {
      for (; step < end(); step += 2) {
        full(at.index).wait(at.parity);
        multiply_block(sum[0], a[0], at.index, 0, step == begin(), half, thread);
        finish_before(at.index, step, true, thread);
        at.advance<Size::kSlots>();
        if (step + 1 == end()) break;
        full(at.index).wait(at.parity);
        multiply_block(sum[0], a[1], at.index, 0, false, half, thread);
        finish_before(at.index, step + 1, true, thread);
        at.advance<Size::kSlots>();
      }
    }
    wgmma_wait<0>();
  }

  // All products but the last are done: those of the step before, if these are the `first` of a
  // step.
  __device__ void finish_before(int slot, int step, bool first, int thread) const {
    wgmma_wait<1>();
    if (first && step > begin()) {
      release(slot == 0 ? Size::kSlots - 1 : slot - 1, thread);
    }
  }

  __device__ void multiply_block(float (&sum)[Width / 2], std::uint32_t (&a)[4][4], int slot,
                                 int of, bool starts, int half, int thread) const {
    const std::uint64_t s = tile_descriptor(s_of(slot), SIsKN ? kBoxBytes : 16);
    if constexpr (Masked) {
      const int lane = thread % 32, warp_row = half * kHalfM + thread / 32 * 16;
      const int row = warp_row + lane % 16;
      const std::uint32_t from = x_of(slot, of) + row * kRowBytes + ((lane / 16 ^ row % 8) << 4);
#pragma unroll
      for (int i = 0; i < 4; ++i) load_matrices(a[i], from ^ (i * 32));
      mask_rows(a, masks_of(slot, of) + (warp_row + lane / 4) * 8, thread);
    }
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kTileK / 16; ++i) {
      const std::uint64_t b = s + i * (SIsKN ? 128 : 2);
      if constexpr (Masked) {
        wgmma<Width, SIsKN, T>(sum, a[i], b, !starts || i > 0);
      } else {
        const std::uint64_t x = tile_descriptor(x_of(slot, of) + half * kHalfXBytes, 16);
        wgmma<Width, SIsKN, T>(sum, x + i * 2, b, !starts || i > 0);
      }
    }
    wgmma_commit();
  }

  // Sums are left in the ring, rows after each other: eight more floats a row, so that those who
  // write eight rows at once meet different banks.
  __device__ std::uint32_t sums_of(int row) const { return shared + row * (Width + 8) * 4; }

  __device__ void leave(const float (&sum)[Blocks][Width / 2], int half, int thread) const {
    named_sync(1, 256);  // the ring is free
#pragma unroll
    for (int block = 0; block < Blocks; ++block) {
      const int row = block * kTileM + half * kHalfM + thread / 32 * 16 + thread % 32 / 4;
      const std::uint32_t to = sums_of(row) + thread % 4 * 8;
#pragma unroll
      for (int i = 0; i < Width / 4; ++i) {
        asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(to + i % 2 * (8 * (Width + 8) * 4) +
                                                              i / 2 * 32),
                     "f"(sum[block][i * 2]), "f"(sum[block][i * 2 + 1])
                     : "memory");
      }
    }
  }

  // This block's share of the rows, a warp a row (or two, or half of one), some at a time, so that
  // loads hide each other's time. Four columns a thread.
  template <int Parts>
  __device__ void add_and_store(int thread) const {
    constexpr int kThreadsOfRow = Width / 4, kAtOnce = Parts == 1 ? 8 : Parts <= 4 ? 4 : 2;
    constexpr int kRowsAtOnce = 256 / kThreadsOfRow;
    const int end = (part() + 1) * Blocks * kTileM / Parts, column = thread % kThreadsOfRow * 4;
    const Layer& layer = layer_of_rank(args, column);
    const int rank = column - layer.first_rank;
    if (rank >= layer.rank) return;
    const bool whole =
        reinterpret_cast<std::uintptr_t>(layer.h_out) % 16 == 0 && layer.rank % 4 == 0;
    for (int row = part() * Blocks * kTileM / Parts + thread / kThreadsOfRow; row < end;
         row += kAtOnce * kRowsAtOnce) {
      float4 from[kAtOnce][Parts];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
#pragma unroll
        for (int p = 0; p < Parts; ++p) {
          const std::uint32_t at = sums_of(min(row + j * kRowsAtOnce, end - 1)) + column * 4;
          from[j][p] = p == part() ? load_here(at) : load_there(at, block_of(p, member()));
        }
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int at_row = row + j * kRowsAtOnce;
        const std::int64_t m = std::int64_t{first_row_block} * kTileM + at_row;
        if (at_row >= end || m >= args.m) break;
        float4 total = from[j][0];
#pragma unroll
        for (int p = 1; p < Parts; ++p) {
          total.x += from[j][p].x;
          total.y += from[j][p].y;
          total.z += from[j][p].z;
          total.w += from[j][p].w;
        }
        // Scaled in float32 before it is rounded, so that it overflows no sooner than itself.
        T* const h = static_cast<T*>(args.h) + m * args.h_stride + column;
        *reinterpret_cast<uint2*>(h) =
            make_uint2(pack2<T>(total.x * layer.scaling, total.y * layer.scaling),
                       pack2<T>(total.z * layer.scaling, total.w * layer.scaling));
        if (layer.h_out == nullptr) continue;
        float* const out = layer.h_out + m * layer.rank + rank;
        total.x *= args.h_scale, total.y *= args.h_scale;
        total.z *= args.h_scale, total.w *= args.h_scale;
        if (whole) {
          *reinterpret_cast<float4*>(out) = total;
          continue;
        }
        const float values[4] = {total.x, total.y, total.z, total.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (rank + i < layer.rank) out[i] = values[i];
        }
      }
    }
  }
  __device__ void add_parts(int thread) const {
    switch (splits) {
      case 2:
        return add_and_store<2>(thread);
      case 3:
        return add_and_store<3>(thread);
      case 4:
        return add_and_store<4>(thread);
      default:
        return add_and_store<8>(thread);
    }
  }
};

#endif

template <class T, int Width, int Blocks, bool SIsKN, bool Masked>
__global__ void __launch_bounds__(kThreads, 1)
    shrink(const __grid_constant__ Maps maps, const __grid_constant__ Arguments args,
           const __grid_constant__ ShrinkShape shape) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) unsigned char shared[];
  const auto copy_e = [&](unsigned thread, unsigned threads) {
    for (int i = args.copies.of_s; i < args.copies.of_pair; ++i) {
      copy_turned<T>(args.copies.list[i], thread, threads);
    }
    fence_async();
  };
  const int begin = static_cast<int>(blockIdx.x) - shape.copy_blocks;
  if (begin < 0) {
    if (!shape.after_masks) wait_for_kernel_before();
    let_next_kernel_start();
    return copy_e(blockIdx.x * kThreads + threadIdx.x, shape.copy_blocks * kThreads);
  }
  const Shrinker<T, Width, Blocks, SIsKN, Masked> shrinker(maps, args, shape,
                                                           shared_address(shared));
  if (threadIdx.x == 0) {
    shrinker.init_barriers();
    prefetch(maps.x);
    prefetch(maps.s);
  }
  __syncwarp();
  cluster_arrive();
  // Of masks, who fetches them waits, or who fetches none: when this kernel has ended, so have
  // they.
  if (!shape.after_masks) wait_for_kernel_before();
  let_next_kernel_start();

  const int warpgroup = static_cast<int>(threadIdx.x) / 128;
  const int half = warpgroup - 1, thread = static_cast<int>(threadIdx.x) % 128;
  const bool in_parts = shrinker.splits > 1;
  if (warpgroup == 0) {
    shrink_registers<88>();
    if (thread == 0) shrinker.fetch_first_x();
    __syncwarp();
    cluster_wait();
    if (thread == 0) {
      shrinker.fetch();
      if (!Masked && shape.after_masks) wait_for_kernel_before();
    }
    if (thread >= 32 && shape.copy_blocks == 0 && !in_parts) {
      copy_e(blockIdx.x * kCopyThreads + thread - 32, shape.whole_blocks() * kCopyThreads);
    }
    __syncwarp();
    if (in_parts) cluster_sync();
  } else {
    grow_registers<208>();
    cluster_wait();
    float sum[Blocks][Width / 2];
    shrinker.multiply(sum, half, thread);
    shrinker.leave(sum, half, thread);
    const int of_both = static_cast<int>(threadIdx.x) - 128;
    if (in_parts) {
      cluster_sync();
      shrinker.add_parts(of_both);
    } else {
      named_sync(1, 256);
      shrinker.template add_and_store<1>(of_both);
    }
    __syncwarp();
  }
  cluster_sync();  // other blocks may still read here, or arrive
#endif
}

}  // namespace graft::cuda::hopper
