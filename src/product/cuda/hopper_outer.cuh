#pragma once

#include <cstdint>

#include "backend/cuda/sm90.cuh"
#include "backend/cuda/wgmma.cuh"
#include "product/cuda/hopper_mask_bits.cuh"

// out (rank, features) = factor · Gᵀ · X, with X (M, features) and G (M, rank): dA of x and g, dB
// of dy and h. Rows are what is summed over; both matrices lie with rows across, and of G the
// matrix units take that as it is:
//
//                         G (64, rank) of this step
//                        ┌────────────┐
//      X (64, 128)       └────────────┘
//      ┌────────────┐    ┌────────────┐ features 0-63: warpgroup 1
//      │            │    │ outᵀ       │
//      └────────────┘    └────────────┘ features 64-127: warpgroup 2
//        of this step
//
// X goes through registers: it is turned round on its way there, and masked, if it is dropped out.
// There are few tiles (32 of 4096 features), so that rows are cut into parts, one a block of a
// cluster; then each leaves its sums in its shared memory, and they share them out and add up those
// of all parts, in their order.
//
// Of 4096 rows, and x and dy of 4096 features, 67 MB come from memory: 18 µs; and as much of G from
// L2 at rank 128. The products of rank 64 are 4.6 µs of the matrix units, those of 256 18.
//
// Where the kernel before has let this one start when all that it reads was there, blocks of it run
// on the multiprocessors that have nothing else to do until that kernel ends.

namespace graft::cuda::hopper_outer {

constexpr int kRows = 64;       // of a step
constexpr int kFeatures = 128;  // of a block
constexpr int kThreads = 384;   // one warpgroup fetches, two multiply
constexpr int kBoxBytes = kRows * 128;
constexpr int kMaskBytes = kRows / 32 * 64 * 4;  // of a box
constexpr int kMostJobs = 2;

template <int Width>
struct Sizes {
  static constexpr int kXBytes = 2 * kBoxBytes;
  static constexpr int kSlotBytes = kXBytes + Width / 64 * kBoxBytes;
  static constexpr int kSlots = 192 * 1024 / kSlotBytes;
  static constexpr int kMasks = kSlots * kSlotBytes;  // offsets in shared memory
  static constexpr int kFull = kMasks + kSlots * 2 * kMaskBytes;
  static constexpr int kEmpty = kFull + kSlots * 8;
  static constexpr int kEnd = kEmpty + kSlots * 8;
  static_assert(kFeatures * Width * 4 <= kMasks, "sums are left where the ring was");
};

struct Job {
  float* out;
  std::int64_t rank_stride, col_stride;
  float factor;
  int cols;
  int first_tile;
  const std::uint32_t* masks;  // or null
  int mask_steps;
};

struct Arguments {
  Job jobs[kMostJobs];
  int count;
  int rank, steps;
  int splits;
  // All that is read was there when the kernel before let this one start: it is not waited for
  // until the end.
  bool early;
};

struct Maps {
  CUtensorMap matrix[kMostJobs], coefficients[kMostJobs];
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

template <class T, int Width>
struct Block {
  using Size = Sizes<Width>;
  using Sums = float[Width / 2];

  const Maps& maps;
  const Arguments& args;
  std::uint32_t shared;
  int part;  // of the rows: the block's rank in the cluster
  int of;    // the job
  int first_feature;

  __device__ Block(const Maps& all_maps, const Arguments& arguments, std::uint32_t at)
      : maps(all_maps), args(arguments), shared(at), part(static_cast<int>(cluster_rank())) {
    const int tile = static_cast<int>(blockIdx.x) / args.splits;
    of = args.count > 1 && tile >= args.jobs[1].first_tile ? 1 : 0;
    first_feature = (tile - job().first_tile) * kFeatures;
  }

  __device__ const Job& job() const { return args.jobs[of]; }
  __device__ int begin() const { return part * args.steps / args.splits; }
  __device__ int end() const { return (part + 1) * args.steps / args.splits; }

  __device__ std::uint32_t slot(int index) const { return shared + index * Size::kSlotBytes; }
  __device__ std::uint32_t masks(int index) const {
    return shared + Size::kMasks + index * 2 * kMaskBytes;
  }
  __device__ Barrier full(int index) const { return {shared + Size::kFull + index * 8}; }
  __device__ Barrier empty(int index) const { return {shared + Size::kEmpty + index * 8}; }

  // One thread: fills the ring. Boxes that have no column of the matrix are left out, as are those
  // of ranks that there are not: what is made of them is not stored.
  __device__ void fetch() const {
    Slot at{0, 1};
    const int boxes = min(2, (job().cols - first_feature + 63) / 64);
    const int rank_boxes = (args.rank + 63) / 64;
    const bool masked = job().masks != nullptr;
    const int bytes = (boxes + rank_boxes) * kBoxBytes + (masked ? boxes * kMaskBytes : 0);
    if (args.early) fence_async();  // coefficients and masks were not written by TMA
    for (int step = begin(); step < end(); ++step) {
      const Barrier filled = full(at.index);
      const std::uint32_t to = slot(at.index);
      empty(at.index).wait(at.parity);
      filled.arrive_and_expect(bytes);
      for (int i = 0; i < boxes; ++i) {
        load_box(to + i * kBoxBytes, maps.matrix[of], filled, first_feature + i * 64, step * kRows);
      }
      for (int i = 0; i < rank_boxes; ++i) {
        load_box(to + Size::kXBytes + i * kBoxBytes, maps.coefficients[of], filled, i * 64,
                 step * kRows);
      }
      for (int i = 0; masked && i < boxes; ++i) {
        const std::int64_t box = std::int64_t{step / 2} * job().mask_steps + first_feature / 64 + i;
        load_bytes(masks(at.index) + i * kMaskBytes,
                   job().masks + (box * 2 + step % 2) * (kMaskBytes / 4), filled, kMaskBytes);
      }
      at.advance<Size::kSlots>();
    }
  }

  // Warpgroups 1 and 2: a half of the features each. Products go in two groups a step, each of half
  // of the rows and of its own fragments, so that one is loaded while the other is multiplied.
  __device__ void multiply(Sums& sum, int half, int thread) const {
    const int lane = thread % 32, row = lane / 16 * 8 + lane % 8;
    const int piece = thread / 32 * 2 + lane / 8 % 2;
    const std::uint32_t from = half * kBoxBytes + row * 128 + ((piece ^ row % 8) << 4);
    const std::uint32_t words = half * kMaskBytes + (thread / 32 * 16 + lane / 4) * 4;
    const bool masked = job().masks != nullptr;
    std::uint32_t a[2][2][4];
    Slot at{0, 0};
    int before = 0;
    for (int step = begin(); step < end(); ++step) {
      const bool first = step == begin();
      full(at.index).wait(at.parity);
      const std::uint64_t b = tile_descriptor(slot(at.index) + Size::kXBytes, kBoxBytes);
#pragma unroll
      for (int group = 0; group < 2; ++group) {
        if (!first || group > 0) wgmma_wait<1>();
        if (!first && group == 1 && lane == 0) empty(before).arrive();
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          load_matrices_turned(a[group][i], slot(at.index) + from + (group * 2 + i) * 16 * 128);
        }
        if (masked) {  // a word has a feature's bits of 32 rows
          const std::uint32_t at_words = masks(at.index) + words + group * 64 * 4;
          const std::uint32_t low = load_word(at_words), high = load_word(at_words + 8 * 4);
#pragma unroll
          for (int i = 0; i < 2; ++i) hopper::mask_fragment(a[group][i], low, high, i, thread);
        }
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          wgmma<Width, true, T>(sum, a[group][i], b + (group * 2 + i) * 128,
                                !first || group + i > 0);
        }
        wgmma_commit();
      }
      before = at.index;
      at.advance<Size::kSlots>();
    }
    wgmma_wait<0>();
  }

  // Eight ranks of a thread's two features.
  __device__ void store(int half, int thread, int eight, const float4& value) const {
    const int feature = first_feature + half * 64 + thread / 32 * 16 + thread % 32 / 4;
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
  __device__ std::uint32_t sums_at(int half, int thread, int eight) const {
    return shared + ((half * (Width / 8) + eight) * 128 + thread) * 16;
  }

  __device__ void leave(const Sums& sum, int half, int thread) const {
    named_sync(1, 256);  // the ring is free
#pragma unroll
    for (int i = 0; i < Width / 8; ++i) {
      asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(sums_at(half, thread, i)),
                   "f"(sum[i * 4]), "f"(sum[i * 4 + 1]), "f"(sum[i * 4 + 2]), "f"(sum[i * 4 + 3])
                   : "memory");
    }
  }

  // This block's share of the ranks.
  __device__ void add(int half, int thread) const {
    const int eights = (args.rank + 7) / 8;
#pragma unroll 2
    for (int i = part * eights / args.splits; i < (part + 1) * eights / args.splits; ++i) {
      const std::uint32_t at = sums_at(half, thread, i);
      float4 total = load_there(at, 0);
#pragma unroll 2
      for (int p = 1; p < args.splits; ++p) {
        const float4 from = load_there(at, p);
        total.x += from.x;
        total.y += from.y;
        total.z += from.z;
        total.w += from.w;
      }
      store(half, thread, i, total);
    }
  }
};

#endif

template <class T, int Width>
__global__ void __launch_bounds__(kThreads, 1)
    sum_outer(const __grid_constant__ Maps maps, const __grid_constant__ Arguments args) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Size = Sizes<Width>;
  extern __shared__ __align__(1024) unsigned char shared[];
  const Block<T, Width> block(maps, args, shared_address(shared));
  if (threadIdx.x == 0) {
    for (int i = 0; i < Size::kSlots; ++i) {
      block.full(i).init(1);
      block.empty(i).init(8);  // the warps that multiply
    }
    publish_barriers();
    prefetch(maps.matrix[block.of]);
    prefetch(maps.coefficients[block.of]);
  }
  __syncthreads();
  if (!args.early) {
    wait_for_kernel_before();
    let_next_kernel_start();
  }

  const int warpgroup = static_cast<int>(threadIdx.x) / 128;
  const int half = warpgroup - 1, thread = static_cast<int>(threadIdx.x) % 128;
  if (warpgroup == 0) {
    shrink_registers<40>();
    if (thread == 0) block.fetch();
    __syncwarp();
    if (args.splits > 1) cluster_sync();
  } else {
    grow_registers<232>();
    float sum[Width / 2];
    block.multiply(sum, half, thread);
    if (args.splits == 1) {
#pragma unroll
      for (int i = 0; i < Width / 8; ++i) {
        block.store(half, thread, i,
                    make_float4(sum[i * 4], sum[i * 4 + 1], sum[i * 4 + 2], sum[i * 4 + 3]));
      }
    } else {
      block.leave(sum, half, thread);
      cluster_sync();
      block.add(half, thread);
    }
  }
  __syncwarp();
  if (args.splits > 1) cluster_sync();  // other blocks may still read here
  // Who waits for this kernel waits for the one before it too.
  if (args.early && blockIdx.x + 1 == gridDim.x) wait_for_kernel_before();
#endif
}

}  // namespace graft::cuda::hopper_outer
