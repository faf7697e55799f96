#pragma once

#include <cstdint>

#include "backend/cuda/sm90.cuh"
#include "backend/cuda/wgmma.cuh"
#include "product/cuda/hopper_mask_bits.cuh"

// out (rank, features) = factor · Gᵀ · X, with X (M, features) and G (M, rank): dA of x and g, dB
// of dy and h. Rows are what is summed over; both matrices lie with rows across, which the matrix
// units take as they are, so that nothing is turned round:
//
//                         G (64, rank) of this step
//                        ┌────────────┐
//                        │            │
//      X (64, 256)       └────────────┘
//      ┌────────────┐    ┌────────────┐  features 0-127: warpgroup 1, in two products of 64
//      │            │    │ outᵀ       │
//      └────────────┘    │            │  features 128-255: warpgroup 2
//        of this step    └────────────┘
//
// A block sums up 256 features by up to 128 ranks, or 128 by 256: as much as registers hold. There
// are few such tiles (16 of 4096 features), so that rows are cut into parts, one a block of a
// cluster; then each leaves its sums in its shared memory, and they share them out and add up those
// of all parts, in their order. Of rank 256, G is twice what a block fetches of X, and two tiles
// side by side share it.
//
// Of 4096 rows, and x and dy of 4096 features, 67 MB come from memory: 18 µs. The products of rank
// 64 are 4.6 µs of the matrix units, those of 256 18.
//
// With masks X goes through registers: it is turned round on its way there, and the bits applied.

namespace graft::cuda::hopper_outer {

constexpr int kRows = 64;      // of a step
constexpr int kThreads = 384;  // one warpgroup fetches, two multiply
constexpr int kBoxBytes = kRows * 128;
constexpr int kMaskBytes = kRows / 32 * 64 * 4;  // of a box
constexpr int kMostJobs = 2;

template <int Width>
struct Sizes {
  static constexpr int kHalves = Width == 256 ? 1 : 2;  // products of 64 features a warpgroup
  static constexpr int kBoxes = 2 * kHalves;            // of X
  static constexpr int kFeatures = kBoxes * 64;
  static constexpr int kXBytes = kBoxes * kBoxBytes;
  static constexpr int kSlotBytes = kXBytes + Width / 64 * kBoxBytes;
  static constexpr int kSlots = Width == 64 ? 5 : 4;
  static constexpr int kMasks = kSlots * kSlotBytes;  // offsets in shared memory
  static constexpr int kFull = kMasks + kSlots * kBoxes * kMaskBytes;
  static constexpr int kEmpty = kFull + kSlots * 8;
  static constexpr int kEnd = kEmpty + kSlots * 8;
  static_assert(kFeatures * Width * 4 <= kMasks, "sums are left where the ring was");
};

struct Job {
  float* out;
  std::int64_t rank_stride, col_stride;
  float factor;
  int cols;
  int first_cluster;
  const std::uint32_t* masks;  // or null
  int mask_steps;
};

struct Arguments {
  Job jobs[kMostJobs];
  int count;
  int rank, steps;
  int pair, splits;
};

struct Maps {
  CUtensorMap matrix[kMostJobs], coefficients[kMostJobs];
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

template <class T, int Width, bool Masked>
struct Block {
  using Size = Sizes<Width>;
  static constexpr int kHalves = Size::kHalves;
  using Sums = float[kHalves][Width / 2];

  const Maps& maps;
  const Arguments& args;
  std::uint32_t shared;
  int rank;  // in the cluster
  int of;    // the job
  int tile;  // of it

  __device__ Block(const Maps& all_maps, const Arguments& arguments, std::uint32_t at)
      : maps(all_maps), args(arguments), shared(at), rank(static_cast<int>(cluster_rank())) {
    const int cluster = static_cast<int>(blockIdx.x) / (args.pair * args.splits);
    of = args.count > 1 && cluster >= args.jobs[1].first_cluster ? 1 : 0;
    tile = (cluster - job().first_cluster) * args.pair + member();
  }

  __device__ const Job& job() const { return args.jobs[of]; }
  __device__ int member() const { return rank % args.pair; }
  __device__ int part() const { return rank / args.pair; }
  __device__ int block_of(int of_part, int of_member) const {
    return of_part * args.pair + of_member;
  }
  __device__ int begin() const { return part() * args.steps / args.splits; }
  __device__ int end() const { return (part() + 1) * args.steps / args.splits; }
  __device__ int first_feature() const { return tile * Size::kFeatures; }

  __device__ std::uint32_t slot(int index) const { return shared + index * Size::kSlotBytes; }
  __device__ std::uint32_t masks(int index) const {
    return shared + Size::kMasks + index * Size::kBoxes * kMaskBytes;
  }
  __device__ Barrier full(int index) const { return {shared + Size::kFull + index * 8}; }
  __device__ Barrier empty(int index) const { return {shared + Size::kEmpty + index * 8}; }

  // One thread: fills the ring. Boxes that have no column of the matrix are left out, as are those
  // of ranks that there are not: what is made of them is not stored.
  __device__ void fetch() const {
    Slot at{0, 1};
    const auto both = static_cast<std::uint16_t>(((1 << args.pair) - 1) << block_of(part(), 0));
    const int boxes = max(0, min(Size::kBoxes, (job().cols - first_feature() + 63) / 64));
    const int rank_boxes = (args.rank + 63) / 64;
    const bool masked = Masked && job().masks != nullptr;
    const int bytes = (boxes + rank_boxes) * kBoxBytes + (masked ? boxes * kMaskBytes : 0);
    for (int step = begin(); step < end(); ++step) {
      const Barrier filled = full(at.index);
      const std::uint32_t to = slot(at.index);
      empty(at.index).wait(at.parity);
      filled.arrive_and_expect(bytes);
      for (int i = 0; i < boxes; ++i) {
        load_box(to + i * kBoxBytes, maps.matrix[of], filled, first_feature() + i * 64,
                 step * kRows);
      }
      for (int i = member(); i < rank_boxes; i += args.pair) {
        load_box(to + Size::kXBytes + i * kBoxBytes, maps.coefficients[of], filled, i * 64,
                 step * kRows, both);
      }
      if (masked) {
        for (int i = 0; i < boxes; ++i) {
          const std::int64_t box =
              std::int64_t{step / 2} * job().mask_steps + first_feature() / 64 + i;
          load_bytes(masks(at.index) + i * kMaskBytes, job().masks + (box * 2 + step % 2) * 128,
                     filled, kMaskBytes);
        }
      }
      at.advance<Size::kSlots>();
    }
  }

  __device__ void release(int index, int thread) const {
    if (thread < args.pair) empty(index).arrive_at(block_of(part(), thread));
  }

  // Warpgroups 1 and 2: a half of the features each.
  __device__ void multiply(Sums& sum, int half, int thread) const {
    Slot at{0, 0};
    int before = 0;
    for (int step = begin(); step < end(); ++step) {
      const bool first = step == begin();
      full(at.index).wait(at.parity);
      const std::uint32_t x = slot(at.index) + half * kHalves * kBoxBytes;
      const std::uint64_t b = tile_descriptor(slot(at.index) + Size::kXBytes, kBoxBytes);
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < kRows / 16; ++i) {
#pragma unroll
        for (int j = 0; j < kHalves; ++j) {
          const std::uint64_t a = tile_descriptor(x + j * kBoxBytes, kBoxBytes);
          wgmma<Width, true, T, true>(sum[j], a + i * 128, b + i * 128, !first || i > 0);
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
    wgmma_wait<0>();
  }

  // The same of features that are masked. Products go in two groups a step, each of its own
  // fragments, so that one is loaded while the other is multiplied: of 64 features by all rows; or,
  // of rank 256, of half of the rows.
  __device__ void multiply_masked(Sums& sum, int half, int thread) const {
    constexpr int kFragments = kHalves == 2 ? 4 : 2;
    const int lane = thread % 32, row = lane / 16 * 8 + lane % 8;
    const int piece = thread / 32 * 2 + lane / 8 % 2;
    const std::uint32_t from = row * 128 + ((piece ^ row % 8) << 4);
    const std::uint32_t column = (thread / 32 * 16 + lane / 4) * 4;
    const bool masked = job().masks != nullptr;
    std::uint32_t a[2][kFragments][4];
    Slot at{0, 0};
    int before = 0;
    for (int step = begin(); step < end(); ++step) {
      const bool first = step == begin();
      full(at.index).wait(at.parity);
      const std::uint64_t b = tile_descriptor(slot(at.index) + Size::kXBytes, kBoxBytes);
#pragma unroll
      for (int group = 0; group < 2; ++group) {
        const int j = kHalves == 2 ? group : 0, first_fragment = kHalves == 2 ? 0 : group * 2;
        const int box = half * kHalves + j;
        if (!first || group > 0) wgmma_wait<1>();
        if (!first && group == 1) release(before, thread);
#pragma unroll
        for (int i = 0; i < kFragments; ++i) {
          load_matrices_turned(a[group][i], slot(at.index) + box * kBoxBytes + from +
                                                (first_fragment + i) * 16 * 128);
        }
        if (masked) {
          const std::uint32_t words = masks(at.index) + box * kMaskBytes + column;
#pragma unroll
          for (int i = 0; i < kFragments; i += 2) {
            const int word = (first_fragment + i) / 2;
            const std::uint32_t low = load_word(words + word * 64 * 4);
            const std::uint32_t high = load_word(words + (word * 64 + 8) * 4);
            hopper::mask_fragment(a[group][i], low, high, 0, thread);
            hopper::mask_fragment(a[group][i + 1], low, high, 1, thread);
          }
        }
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < kFragments; ++i) {
          wgmma<Width, true, T>(sum[j], a[group][i], b + (first_fragment + i) * 128,
                                !first || first_fragment + i > 0);
        }
        wgmma_commit();
      }
      before = at.index;
      at.advance<Size::kSlots>();
    }
    wgmma_wait<0>();
  }

  __device__ static std::uint32_t load_word(std::uint32_t at) {
    std::uint32_t word;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(at) : "memory");
    return word;
  }

  // Eight ranks of a thread's two features.
  __device__ void store(int half, int thread, int j, int eight, const float4& value) const {
    const int feature =
        first_feature() + (half * kHalves + j) * 64 + thread / 32 * 16 + thread % 32 / 4;
    const int r = eight * 8 + thread % 4 * 2;
    const auto put = [&](int at_r, int at_feature, float sum) {
      if (at_r >= args.rank || at_feature >= job().cols) return;
      job().out[at_r * job().rank_stride + at_feature * job().col_stride] = sum * job().factor;
    };
    put(r, feature, value.x);
    put(r + 1, feature, value.y);
    put(r, feature + 8, value.z);
    put(r + 1, feature + 8, value.w);
  }

  // Where the sums of an eight of ranks are left, in the ring.
  __device__ std::uint32_t sums_at(int half, int thread, int j, int eight) const {
    return shared + (((half * kHalves + j) * (Width / 8) + eight) * 128 + thread) * 16;
  }

  __device__ void leave(const Sums& sum, int half, int thread) const {
    named_sync(1, 256);  // the ring is free
#pragma unroll
    for (int j = 0; j < kHalves; ++j) {
#pragma unroll
      for (int i = 0; i < Width / 8; ++i) {
        asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(sums_at(half, thread, j, i)),
                     "f"(sum[j][i * 4]), "f"(sum[j][i * 4 + 1]), "f"(sum[j][i * 4 + 2]),
                     "f"(sum[j][i * 4 + 3])
                     : "memory");
      }
    }
  }

  // This block's share of the sums of its tile.
  __device__ void add(int half, int thread) const {
    const int eights = min(Width, args.rank + 7) / 8, all = eights * kHalves;
    if (first_feature() >= job().cols) return;
#pragma unroll 2
    for (int i = part() * all / args.splits; i < (part() + 1) * all / args.splits; ++i) {
      const int j = i / eights, eight = i % eights;
      const std::uint32_t at = sums_at(half, thread, j, eight);
      float4 total = load_there(at, block_of(0, member()));
#pragma unroll 2
      for (int p = 1; p < args.splits; ++p) {
        const float4 from = load_there(at, block_of(p, member()));
        total.x += from.x;
        total.y += from.y;
        total.z += from.z;
        total.w += from.w;
      }
      store(half, thread, j, eight, total);
    }
  }
};

#endif

template <class T, int Width, bool Masked>
__global__ void __launch_bounds__(kThreads, 1)
    sum_outer(const __grid_constant__ Maps maps, const __grid_constant__ Arguments args) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Size = Sizes<Width>;
  extern __shared__ __align__(1024) unsigned char shared[];
  const Block<T, Width, Masked> block(maps, args, shared_address(shared));
  if (threadIdx.x == 0) {
    for (int i = 0; i < Size::kSlots; ++i) {
      block.full(i).init(1);
      block.empty(i).init(2 * args.pair);  // two warpgroups, of each block of the pair
    }
    publish_barriers();
    prefetch(maps.matrix[block.of]);
    prefetch(maps.coefficients[block.of]);
  }
  cluster_sync();
  wait_for_kernel_before();
  let_next_kernel_start();

  const int warpgroup = static_cast<int>(threadIdx.x) / 128;
  const int half = warpgroup - 1, thread = static_cast<int>(threadIdx.x) % 128;
  if (warpgroup == 0) {
    shrink_registers<40>();
    if (thread == 0) block.fetch();
    __syncwarp();
    if (args.splits > 1) cluster_sync();
  } else {
    grow_registers<232>();
    float sum[Size::kHalves][Width / 2];
    if constexpr (Masked) {
      block.multiply_masked(sum, half, thread);
    } else {
      block.multiply(sum, half, thread);
    }
    if (args.splits == 1) {
#pragma unroll
      for (int j = 0; j < Size::kHalves; ++j) {
#pragma unroll
        for (int i = 0; i < Width / 8; ++i) {
          block.store(
              half, thread, j, i,
              make_float4(sum[j][i * 4], sum[j][i * 4 + 1], sum[j][i * 4 + 2], sum[j][i * 4 + 3]));
        }
      }
    } else {
      block.leave(sum, half, thread);
      cluster_sync();
      block.add(half, thread);
    }
  }
  __syncwarp();
  cluster_sync();  // other blocks may still read here, or arrive
#endif
}

}  // namespace graft::cuda::hopper_outer
