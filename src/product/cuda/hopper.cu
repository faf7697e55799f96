#include <cooperative_groups.h>

#include <algorithm>
#include <cstdint>
#include <string>

#include "backend/cuda/element.cuh"
#include "backend/cuda/sm90.cuh"
#include "backend/cuda/tensor_map.h"
#include "backend/cuda/wgmma.cuh"
#include "graft/error.h"
#include "product/cuda/hopper.h"

// y = [ x | s·h ] · [ W ; E ] + bias with h = x·S, for many rows of 16-bit elements on Hopper.
//
// A block makes a tile of 128 rows of y and 256 (or 128) columns, over K in steps of 64; two blocks
// of a cluster make two tiles, one above the other, and each fetches half of their W for both:
//
//                  W (64, 256) of this step
//                 ┌───────────┬───────────┐
//                 │fetched by │ by block 1│ ──> to both
//                 │ block 0   │           │
//                 └───────────┴───────────┘
//      x (128, 64)
//      ┌──┐ block 0  ┌───────────────────────┐ rows 0-63: warpgroup 1
//      │  │          │ y                     │ rows 64-127: warpgroup 2
//      └──┘          └───────────────────────┘
//      ┌──┐ block 1  ┌───────────────────────┐
//      │  │          │ y                     │
//      └──┘          └───────────────────────┘
//
// One thread of warpgroup 0 fetches: it waits until a slot of the ring is empty, and tells TMA to
// fill it. Warpgroups 1 and 2 wait until it is full, let wgmma multiply, and release the slot when
// the products of the one before it are known to be done. They add up y in registers (128 each,
// which warpgroup 0 has no use for and gives away), round it, and put it into staging buffers, from
// which TMA stores it while the next tile begins. A step is 128·256·64 products in 512 clocks, for
// which 48 KB come in: half from L2 twice, half shared.
//
// The pair is the last step of every tile, with h in x's place and E in W's. h is made by blocks
// that have a tile less than others (see HopperPlan) before they turn to their tiles, in the same
// ring: a slot then holds x (128, 128) and S (128, r). They write it to memory and raise a flag of
// the row block; whoever fetches h waits for it. Only blocks that wait for nothing raise flags.

namespace graft::cuda {
namespace {

constexpr int kTileM = 128;  // rows of y in a block's tile
constexpr int kTileK = 64;   // 128 bytes of 16-bit elements, the widest row that TMA swizzles
constexpr int kRowBytes = kTileK * 2;
constexpr int kHalfM = 64;  // rows of a warpgroup
constexpr int kXBytes = kTileM * kRowBytes;
constexpr int kHalfXBytes = kHalfM * kRowBytes;
constexpr int kBoxBytes = 64 * kRowBytes;  // of 64 rows
constexpr int kThreads = 384;              // three warpgroups
constexpr int kStagingBytes = 2 * 2 * kBoxBytes;
constexpr int kFlagsOfRowBlock = 3;  // ready; arrived, a warpgroup

// Tiles are made in groups of so many cluster rows, column by column, so that those made at one
// time share what they read of x and W.
constexpr int kGroupRows = 8;

constexpr int kMostOuter = 2;           // outer products of a term: dA and dB
constexpr int kOuterCols = 128;         // columns of a matrix in a unit, 64 a warpgroup
constexpr int kOuterPartial = 8 * 128;  // sums of a warpgroup

template <int TileN>
struct Sizes {
  static constexpr int kSlots = TileN == 256 ? 4 : 6;
  static constexpr int kSlotBytes = kXBytes + TileN * kRowBytes;
  static constexpr int kRing = 0;  // offsets in shared memory
  static constexpr int kStaging = kRing + kSlots * kSlotBytes;
  static constexpr int kBias = kStaging + kStagingBytes;
  static constexpr int kFull = kBias + TileN * 4;
  static constexpr int kEmpty = kFull + kSlots * 8;
  static constexpr int kArrived = kEmpty + kSlots * 8;
  static constexpr int kSeen = kArrived + 8;
  static constexpr int kEnd = kSeen + 8;
};

// What the slots hold while h is made: so many steps of x and S.
template <int TileN>
__host__ __device__ constexpr int steps_of_unit(int rank_class) {
  return TileN == 256 && rank_class <= 64 ? 2 : 1;
}

// A matrix of the pair, copied into rows that TMA can fetch, in the type that is multiplied.
struct Copy {
  const void* from;
  std::int64_t outer_stride, inner_stride;
  DType dtype;
  int outer, inner;  // rows of the copy, and elements of a row
  int stride;        // from row to row: `inner` rounded up to eight
  void* to;
};

struct Copies {
  Copy list[2 + kMostOuter];
  int count = 0, of_s = 0;  // S is the first one, if it is copied
};

struct Maps {
  CUtensorMap x, w, y, s, e, h;
  CUtensorMap matrix[kMostOuter], coefficients[kMostOuter];
};

// One outer product, out (rank, cols) = factor · coefficientsᵀ · matrix.
struct OuterPart {
  float* out;
  std::int64_t rank_stride, col_stride;
  float factor;
  int cols, col_blocks;
  bool of_h;  // its coefficients are the s·h that this kernel makes
};

// The outer products of a term, made in units beside the tiles: see `Multiplier::unit`.
struct OuterArguments {
  OuterPart parts[kMostOuter];
  int every;               // steps from a unit to the next
  int units;               // column blocks of all parts · cluster rows
  int segments;            // sums of one column block that go through memory, at most
  float* partial;          // [column block][segment][half][128 threads] of 8
  std::uint32_t* arrived;  // [column block][half]
};

struct Arguments {
  int m, n, k_blocks;
  int tile_rows, tile_cols, clusters;
  // The pair.
  int rank, rank_class, h_stride;
  float scaling;
  int light_clusters, light_items, heavy_items, h_parts, units, units_of_part;
  int h_every;     // steps between units of h in the first tile of a heavy cluster; 0: before it
  void* h;         // (m, h_stride), s·h in the type that is multiplied
  float* h_out;    // (m, rank), h; or null
  float* partial;  // sums over parts of K
  std::uint32_t* flags;  // of row blocks: s·h is there; the first of all flags
  int flag_count;
  std::uint32_t* copied;  // raised by each block: S is copied; the rest is
  const void* bias;       // or null
  std::int64_t bias_stride;
  DType bias_dtype;
  Copies copies;             // S, E, and coefficients of outer products
  std::uint32_t* all_ready;  // raised with every flag of a row block
  OuterArguments outer;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// The block's shared memory and its place among the blocks.
template <int TileN>
struct Block {
  using Size = Sizes<TileN>;

  std::uint32_t shared;
  int rank;     // in the cluster
  int cluster;  // the light ones first

  __device__ std::uint32_t slot(Slot at) const { return shared + at.index * Size::kSlotBytes; }
  __device__ Barrier full(int index) const { return {shared + Size::kFull + index * 8}; }
  __device__ Barrier empty(int index) const { return {shared + Size::kEmpty + index * 8}; }
};

// Calls `make(row of clusters, part of K)` for each item of h that falls to this cluster: item i of
// the light ones and then of the others, in turns, so that what is waited for first comes first.
template <class Make>
__device__ void for_each_item(const Arguments& args, int cluster, Make&& make) {
  const int light = args.light_clusters, items = args.tile_rows * args.h_parts;
  const bool is_light = cluster < light;
  const int first = is_light ? cluster : args.light_items * light + (cluster - light);
  const int step = is_light ? light : args.clusters - light;
  const int count = is_light ? args.light_items : args.heavy_items;
  for (int i = 0, item = first; i < count && item < items; ++i, item += step) {
    make(item / args.h_parts, item % args.h_parts);
  }
}

// Calls `make(row of clusters, column)` for each tile of this cluster. The last clusters, which are
// not light, begin.
template <class Make>
__device__ void for_each_tile(const Arguments& args, int cluster, Make&& make) {
  const int tiles = args.tile_rows * args.tile_cols, group_tiles = kGroupRows * args.tile_cols;
  for (int tile = args.clusters - 1 - cluster; tile < tiles; tile += args.clusters) {
    const int group = tile / group_tiles, in_group = tile - group * group_tiles;
    const int rows = min(kGroupRows, args.tile_rows - group * kGroupRows);
    const int column = in_group / rows;
    make(group * kGroupRows + in_group - column * rows, column);
  }
}

// Whether this cluster makes its items of h beside its first tile, and not before it.
__device__ inline bool beside_tile(const Arguments& args, int cluster) {
  return args.h_every > 0 && cluster >= args.light_clusters;
}

// The units of outer products that fall to a cluster: a run of them, in which the cluster rows of
// one column block follow each other.
struct Units {
  int next, end;

  __device__ static int first_of(const Arguments& args, int cluster) {
    return static_cast<int>(std::int64_t{cluster} * args.outer.units / args.clusters);
  }
  __device__ static int cluster_of(const Arguments& args, int unit) {
    return static_cast<int>(((unit + 1) * std::int64_t{args.clusters} - 1) / args.outer.units);
  }
  __device__ Units(const Arguments& args, int cluster)
      : next(first_of(args, cluster)), end(first_of(args, cluster + 1)) {}
  // So many go with the next tile: the first one of a cluster is left alone, until h is there.
  __device__ int of_tile(const Arguments& args, bool first_tile) const {
    return first_tile ? 0 : min(end - next, (args.k_blocks - 1) / args.outer.every);
  }
};

// Eight elements of a row of a copy.
template <class From, class To>
__device__ void store_chunk(const Copy& copy, std::int64_t row, int first,
                            const Pack<From, 8>& in) {
  Pack<To, 8> out;
#pragma unroll
  for (int i = 0; i < 8; ++i) out.values[i] = from_float<To>(to_float(in.values[i]));
  *reinterpret_cast<Pack<To, 8>*>(static_cast<To*>(copy.to) + row * copy.stride + first) = out;
}

// This block's share, by the threads of three warps.
constexpr int kCopyThreads = 96;
template <class From, class To>
__device__ void copy_share_as(const Copy& copy, int thread) {
  const From* const from = static_cast<const From*>(copy.from);
  const unsigned chunks = static_cast<unsigned>(copy.stride) / 8;
  const unsigned end = static_cast<unsigned>(copy.outer) * chunks, step = gridDim.x * kCopyThreads;
  const bool whole = copy.inner_stride == 1 && copy.inner % 8 == 0 &&
                     copy.outer_stride * sizeof(From) % 16 == 0 &&
                     reinterpret_cast<std::uintptr_t>(from) % 16 == 0;
  unsigned chunk = blockIdx.x * kCopyThreads + thread;
  if (whole) {
    constexpr int kAtOnce = sizeof(From) == 4 ? 1 : 2;  // loads on their way
    for (; chunk < end; chunk += step * kAtOnce) {
      Pack<From, 8> in[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const unsigned at = min(chunk + i * step, end - 1), row = at / chunks;
        in[i] = *reinterpret_cast<const Pack<From, 8>*>(from + row * copy.outer_stride +
                                                        (at - row * chunks) * 8);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const unsigned at = min(chunk + i * step, end - 1), row = at / chunks;
        store_chunk<From, To>(copy, row, static_cast<int>(at - row * chunks) * 8, in[i]);
      }
    }
    return;
  }
  for (; chunk < end; chunk += step) {
    // Neighbouring threads read neighbouring elements, whichever way they lie.
    const bool along = copy.inner_stride == 1;
    const unsigned over = along ? chunks : static_cast<unsigned>(copy.outer);
    const unsigned high = chunk / over, low = chunk - high * over;
    const std::int64_t row = along ? high : low;
    const int first = static_cast<int>(along ? low : high) * 8;
    Pack<From, 8> in;
    const From* at = from + row * copy.outer_stride + first * copy.inner_stride;
#pragma unroll
    for (int i = 0; i < 8; ++i, at += copy.inner_stride) {
      in.values[i] = first + i < copy.inner ? *at : from_float<From>(0.0f);
    }
    store_chunk<From, To>(copy, row, first, in);
  }
}

template <class To>
__device__ void copy_share(const Copy& copy, int thread) {
  switch (copy.dtype) {
    case DType::kFloat16:
      return copy_share_as<__half, To>(copy, thread);
    case DType::kBFloat16:
      return copy_share_as<__nv_bfloat16, To>(copy, thread);
    default:
      return copy_share_as<float, To>(copy, thread);
  }
}

// A barrier of all blocks of a kernel that was launched cooperatively, which one thread of each
// arrives at and later waits for: that of cooperative groups (whose own functions take whole
// blocks), in memory that CUDA has for it. Nothing else here is zero at the start.
struct GridBarrier {
  std::uint32_t* word = &cooperative_groups::details::get_grid_workspace()->barrier;
  std::uint32_t before = 0;

  // The sum of all arrivals turns the highest bit over.
  __device__ void arrive() {
    const std::uint32_t add = blockIdx.x == 0 ? 0x80000000u - (gridDim.x - 1) : 1u;
    asm volatile("atom.add.release.gpu.u32 %0, [%1], %2;"
                 : "=r"(before)
                 : "l"(word), "r"(add)
                 : "memory");
  }
  __device__ void wait() const {
    while (((load_acquire(word) ^ before) & 0x80000000u) == 0) {
    }
  }
};

// How far the thread that watches the flags in memory has come, for the one that fetches.
struct Seen {
  std::uint32_t address;

  __device__ void set(int count) const {
    asm volatile("st.release.cta.shared.u32 [%0], %1;" ::"r"(address), "r"(count) : "memory");
  }
  __device__ void wait(int count) const {
    int seen;
    do {
      asm volatile("ld.acquire.cta.shared.u32 %0, [%1];" : "=r"(seen) : "r"(address) : "memory");
    } while (seen < count);
    fence_async();  // what others wrote is now fetched by TMA
  }
};

__device__ inline void wait_for(const std::uint32_t* flag, std::uint32_t count) {
  while (load_acquire(flag) < count) {
  }
}

// Warpgroup 0, the warps that don't fetch: zero the flags, copy this block's share, and then, one
// thread, watch the flags that `fetch` is to wait for, in its order.
template <int TileN, bool Outer, class T>
__device__ void prepare(const Arguments& args, const Block<TileN>& block, int thread) {
  if (blockIdx.x == 0) {
    for (int i = thread; i < args.flag_count; i += kCopyThreads) args.flags[i] = 0;
  }
  named_sync(4, kCopyThreads);
  GridBarrier zeroed;
  if (thread == 0) zeroed.arrive();
  const auto publish = [&](std::uint32_t* flag) {
    fence_async();  // TMA reads the copies
    __threadfence();
    named_sync(4, kCopyThreads);
    if (thread == 0) raise_release(flag);
  };
  const Copies& copies = args.copies;
  for (int i = 0; i < copies.of_s; ++i) copy_share<T>(copies.list[i], thread);
  if (thread == 0) zeroed.wait();
  if (copies.of_s > 0) publish(args.copied);
  if (copies.count > copies.of_s) {
    for (int i = copies.of_s; i < copies.count; ++i) copy_share<T>(copies.list[i], thread);
    publish(args.copied + 1);
  }
  if (thread != 0) return;

  const Seen seen{block.shared + Sizes<TileN>::kSeen};
  int count = 0;
  if (copies.of_s > 0) wait_for(args.copied, gridDim.x);
  seen.set(++count);
  if (copies.count > copies.of_s) wait_for(args.copied + 1, gridDim.x);
  bool first_tile = true;
  for_each_tile(args, block.cluster, [&](int row, int) {
    const int row_block = row * 2 + block.rank;
    if (row_block * kTileM < args.m) wait_for(args.flags + row_block * kFlagsOfRowBlock, 2);
    seen.set(++count);
    if (Outer && first_tile) {
      wait_for(args.all_ready, (args.m + kTileM - 1) / kTileM * 2);
      seen.set(++count);
    }
    first_tile = false;
  });
}

// Warpgroup 0, one thread: fills the ring.
template <int TileN, bool WIsKN, bool Outer>
__device__ void fetch(const Maps& maps, const Arguments& args, const Block<TileN>& block) {
  using Size = Sizes<TileN>;
  Slot at{0, 1};  // of new barriers, the phase before the first one: all slots are empty
  const Seen seen{block.shared + Size::kSeen};
  int count = 0;

  // Two steps of x and S; or one, of a wide S.
  const auto fill_h_unit = [&](int row, int unit) {
    const int steps = steps_of_unit<TileN>(args.rank_class), s_bytes = args.rank_class * kRowBytes;
    const int m0 = (row * 2 + block.rank) * kTileM;
    const Barrier full = block.full(at.index);
    block.empty(at.index).wait(at.parity);
    full.arrive_and_expect(steps * (kXBytes + s_bytes));
    for (int i = 0; i < steps; ++i) {
      const int k = (unit * steps + i) * kTileK;
      load_box(block.slot(at) + i * kXBytes, maps.x, full, k, m0);
      load_box(block.slot(at) + steps * kXBytes + i * s_bytes, maps.s, full, k, 0);
    }
    at.advance<Size::kSlots>();
  };

  int item_row = 0, item_unit = 0, item_end = 0;  // of h beside the first tile

  for_each_item(args, block.cluster, [&](int row, int part) {
    item_row = row;
    item_unit = part * args.units_of_part;
    item_end = min(item_unit + args.units_of_part, args.units);
    if (beside_tile(args, block.cluster)) return;
    seen.wait(1);
    for (; item_unit < item_end; ++item_unit) fill_h_unit(row, item_unit);
  });

  // x (128, 64) and W (64, TileN) at k; or h and E.
  const auto fill = [&](const CUtensorMap& x, const CUtensorMap& w, int m0, int n0, int k) {
    const Barrier full = block.full(at.index);
    block.empty(at.index).wait(at.parity);
    full.arrive_and_expect(Size::kSlotBytes);
    load_box(block.slot(at), x, full, k, m0);
    constexpr int kHalfN = TileN / 2;
    const std::uint32_t to = block.slot(at) + kXBytes + block.rank * kHalfN * kRowBytes;
    const int n = n0 + block.rank * kHalfN;
    if constexpr (WIsKN) {
      for (int i = 0; i < kHalfN / 64; ++i) {
        load_box(to + i * kBoxBytes, w, full, n + i * 64, k, std::uint16_t{3});
      }
    } else {
      load_box(to, w, full, k, n, std::uint16_t{3});
    }
    at.advance<Size::kSlots>();
  };

  // 128 columns of a matrix, and its coefficients, of the block's 128 rows.
  const auto fill_unit = [&](int unit) {
    int column = unit / args.tile_rows;
    const int m0 = (unit % args.tile_rows * 2 + block.rank) * kTileM;
    const int part = column < args.outer.parts[0].col_blocks ? 0 : 1;
    if (part == 1) column -= args.outer.parts[0].col_blocks;
    seen.wait(3);  // copies and h, of all rows
    const Barrier full = block.full(at.index);
    block.empty(at.index).wait(at.parity);
    full.arrive_and_expect(3 * kXBytes);
    const std::uint32_t to = block.slot(at);
    load_box(to, maps.matrix[part], full, column * kOuterCols, m0);
    load_box(to + kXBytes, maps.matrix[part], full, column * kOuterCols + 64, m0);
    load_box(to + 2 * kXBytes, maps.coefficients[part], full, 0, m0);
    at.advance<Size::kSlots>();
  };

  Units units(args, block.cluster);
  bool first_tile = true;
  for_each_tile(args, block.cluster, [&](int row, int column) {
    const int row_block = row * 2 + block.rank, m0 = row_block * kTileM, n0 = column * TileN;
    const int units_end = Outer ? units.next + units.of_tile(args, first_tile) : 0;
    int next_unit = Outer ? args.outer.every : 0, next_h = args.h_every;
    for (int i = 0; i < args.k_blocks; ++i) {
      if (item_unit < item_end && i == next_h) {
        if (i == args.h_every) seen.wait(1);
        fill_h_unit(item_row, item_unit++);
        next_h += args.h_every;
      }
      if (Outer && units.next < units_end && i == next_unit) {
        fill_unit(units.next++);
        next_unit += args.outer.every;
      }
      fill(maps.x, maps.w, m0, n0, i * kTileK);
    }
    if (args.rank == 0) return;
    seen.wait(first_tile ? 2 : ++count);
    if (first_tile) count = Outer ? 3 : 2;
    first_tile = false;
    for (int r = 0; r < args.rank; r += kTileK) fill(maps.h, maps.e, m0, n0, r);
  });
}

template <class T>
__device__ std::uint32_t packed(float low, float high) {
  if constexpr (std::is_same_v<T, __half>) {
    const __half2 both = __floats2half2_rn(low, high);
    return reinterpret_cast<const std::uint32_t&>(both);
  } else {
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return reinterpret_cast<const std::uint32_t&>(both);
  }
}

__device__ inline float load_as_float(const void* data, DType dtype, std::int64_t index) {
  switch (dtype) {
    case DType::kFloat16:
      return __half2float(static_cast<const __half*>(data)[index]);
    case DType::kBFloat16:
      return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[index]);
    default:
      return static_cast<const float*>(data)[index];
  }
}

// Warpgroups 1 and 2: a half tile of 64 rows each.
template <class T, int TileN, bool WIsKN, bool Outer>
struct Multiplier {
  using Size = Sizes<TileN>;

  // Whether there may be units beside tiles.
  static constexpr bool kBeside = TileN == 256;

  const Maps& maps;
  const Arguments& args;
  const Block<TileN>& block;
  int half;    // which warpgroup: 0 or 1
  int thread;  // of the warpgroup
  Units units;
  Slot at{0, 0};
  int unreleased = 0;  // the slot before, whose products may not be done
  // Slots of units: whose products are to go with those of the next step; whose went with the step
  // before. -1: none.
  int unit_to_go = -1, unreleased_unit = -1;
  bool first_tile = true, outer_starts = true;
  // Sums of a unit beside the tile, 64 rows by 16, in two halves that don't wait for each other: of
  // h, or of an outer product.
  float side[2][8];

  __device__ void sync() const { named_sync(1 + half, 128); }

  // Both blocks of a cluster fill a slot, so both must know that it is empty.
  __device__ void release(int slot) const {
    if (thread < 2) block.empty(slot).arrive_at(thread);
  }
  __device__ void advance() {
    unreleased = at.index;
    at.template advance<Size::kSlots>();
  }
  __device__ void release_before() {
    release(unreleased);
    if constexpr (kBeside) {
      if (unreleased_unit >= 0) release(unreleased_unit);
      unreleased_unit = unit_to_go;
      unit_to_go = -1;
    }
  }
  __device__ void finish_products() {
    wgmma_wait<0>();
    release_before();
  }

  // sum += x · W over the first 16 · Steps of the slot's 64.
  template <int Steps>
  __device__ void step(float (&sum)[TileN / 2], bool first) {
    block.full(at.index).wait(at.parity);
    const std::uint32_t slot = block.slot(at);
    const std::uint64_t a = tile_descriptor(slot + half * kHalfXBytes, 16);
    const std::uint64_t b = tile_descriptor(slot + kXBytes, WIsKN ? kBoxBytes : 16);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < Steps; ++i) {
      // 16 elements of a row are 32 bytes; 16 rows are 2048. Descriptors count in 16.
      wgmma<TileN, WIsKN, T>(sum, a + i * 2, b + i * (WIsKN ? 128 : 2), !first || i > 0);
    }
    wgmma_commit();
    if (!first) {
      wgmma_wait<1>();
      release_before();
    }
    advance();
  }

  // h of this warpgroup's rows, over a part of K.
  template <int R>
  __device__ void shrink(float (&sum)[TileN / 2], int row, int part) {
    constexpr int kSteps = steps_of_unit<TileN>(R);
    // Two sums where there is room: shorter ones are more exact, for the matrix units cut off what
    // they add, and don't wait for each other.
    constexpr bool kTwo = R == 16;
    float second[kTwo ? R / 2 : 1];
    const int end = min((part + 1) * args.units_of_part, args.units);
    for (int unit = part * args.units_of_part; unit < end; ++unit) {
      const bool first = unit == part * args.units_of_part;
      block.full(at.index).wait(at.parity);
      const std::uint32_t slot = block.slot(at);
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        const std::uint64_t a = tile_descriptor(slot + i * kXBytes + half * kHalfXBytes, 16);
        const std::uint64_t b = tile_descriptor(slot + kSteps * kXBytes + i * R * kRowBytes, 16);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if constexpr (kTwo) {
            const bool add = !first || i * 4 + j > 1;
            if (j % 2 == 1) {
              wgmma<R, false, T>(second, a + j * 2, b + j * 2, add);
            } else {
              wgmma<R, false, T>(sum, a + j * 2, b + j * 2, add);
            }
          } else {
            wgmma<R, false, T>(sum, a + j * 2, b + j * 2, !first || i + j > 0);
          }
        }
      }
      wgmma_commit();
      if (!first) {
        wgmma_wait<1>();
        release_before();
      }
      advance();
    }
    finish_products();
    if constexpr (kTwo) {
#pragma unroll
      for (int i = 0; i < R / 2; ++i) sum[i] += second[i];
    }

    publish_h<R>(sum, row, part);
  }

  template <int R, int Registers>
  __device__ void publish_h(float (&sum)[Registers], int row, int part) const {
    const int row_block = row * 2 + block.rank;
    if (row_block * kTileM >= args.m) return;
    if (args.h_parts > 1 && !add_parts<R>(sum, row_block, part)) return;
    store_h<R>(sum, row_block);
    // Written by each thread, read by TMA of any block: each thread orders its own writes before
    // TMA's reads and before the flag.
    fence_async();
    __threadfence();
    sync();
    if (thread == 0) {
      raise_release(args.flags + row_block * kFlagsOfRowBlock);
      if constexpr (Outer) raise_release(args.all_ready);
    }
  }

  // Leaves this part's sum in memory. The last of a row block's parts to come adds them all, always
  // in the same order; false: there are others to come.
  template <int R, int Registers>
  __device__ bool add_parts(float (&sum)[Registers], int row_block, int part) const {
    constexpr int kVectors = R / 8;
    const auto partial = [&](int of_part) {
      const std::int64_t blocks = std::int64_t{2} * args.tile_rows;
      return reinterpret_cast<float4*>(args.partial) +
             ((of_part * blocks + row_block) * 2 + half) * (kVectors * 128) + thread;
    };
    float4* const mine = partial(part);
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      __stcg(mine + i * 128,
             make_float4(sum[i * 4], sum[i * 4 + 1], sum[i * 4 + 2], sum[i * 4 + 3]));
    }
    if (!is_last(args.flags + row_block * kFlagsOfRowBlock + 1 + half, args.h_parts)) return false;
#pragma unroll
    for (int i = 0; i < kVectors * 4; ++i) sum[i] = 0.0f;
    for (int p = 0; p < args.h_parts; ++p) {
      const float4* const from = partial(p);
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        const float4 value = __ldcg(from + i * 128);
        sum[i * 4] += value.x;
        sum[i * 4 + 1] += value.y;
        sum[i * 4 + 2] += value.z;
        sum[i * 4 + 3] += value.w;
      }
    }
    return true;
  }

  // s·h, scaled in float32 before it is rounded, so that it overflows no sooner than itself; and h.
  template <int R, int Registers>
  __device__ void store_h(const float (&sum)[Registers], int row_block) const {
    const int lane = thread % 32;
    const std::int64_t row =
        std::int64_t{row_block} * kTileM + half * kHalfM + thread / 32 * 16 + lane / 4;
#pragma unroll
    for (int below = 0; below < 2; ++below) {
      if (row + below * 8 >= args.m) continue;
      T* const to = static_cast<T*>(args.h) + (row + below * 8) * args.h_stride;
      float* const out = args.h_out + (row + below * 8) * args.rank;
#pragma unroll
      for (int i = 0; i < R / 8; ++i) {
        const int column = i * 8 + lane % 4 * 2;
        const float low = sum[i * 4 + below * 2], high = sum[i * 4 + below * 2 + 1];
        if (column >= args.h_stride) continue;
        *reinterpret_cast<std::uint32_t*>(to + column) =
            packed<T>(low * args.scaling, high * args.scaling);
        if (args.h_out == nullptr) continue;
        if (column < args.rank) out[column] = low;
        if (column + 1 < args.rank) out[column + 1] = high;
      }
    }
  }

  __device__ void make_h(float (&sum)[TileN / 2], int row, int part) {
    switch (args.rank_class) {
      case 16:
        return shrink<16>(sum, row, part);
      case 64:
        return shrink<64>(sum, row, part);
      case 128:
        return shrink<128>(sum, row, part);
      default:
        if constexpr (TileN == 256) return shrink<256>(sum, row, part);
    }
  }

  __device__ void make_tile(float (&sum)[TileN / 2], int row, int column) {
    const int n0 = column * TileN;
    float bias = 0.0f;  // of one column of the tile, for all threads
    const int biased = static_cast<int>(threadIdx.x) - 128;
    if (args.bias != nullptr && biased < TileN && n0 + biased < args.n) {
      bias = load_as_float(args.bias, args.bias_dtype, (n0 + biased) * args.bias_stride);
    }
    step<4>(sum, true);
    int i = 1;
    if constexpr (kBeside) {
      if (!Outer && first_tile && beside_tile(args, block.cluster)) {
        for_each_item(args, block.cluster, [&](int item_row, int part) {
          const int begin = part * args.units_of_part;
          const int end = min(begin + args.units_of_part, args.units);
          for (int unit = begin; unit < end; ++unit) {
            for (int before = 1; before < args.h_every; ++before, ++i) step<4>(sum, false);
            h_unit(unit == begin);
            step<4>(sum, false);
            ++i;
          }
          wgmma_wait<0>();
          float h[8];
#pragma unroll
          for (int j = 0; j < 8; ++j) h[j] = side[0][j] + side[1][j];
          publish_h<16>(h, item_row, part);
        });
      }
    }
    if constexpr (Outer) {
      const int end = units.next + units.of_tile(args, first_tile);
      while (units.next < end) {
        for (int before = 1; before < args.outer.every; ++before, ++i) step<4>(sum, false);
        outer_unit();
        outer_starts = false;
        step<4>(sum, false);
        ++i;
        if (++units.next == units.end || units.next % args.tile_rows == 0) {
          store_outer();
          outer_starts = true;
        }
      }
    }
    first_tile = false;
    for (; i < args.k_blocks; ++i) step<4>(sum, false);
    int r = args.rank;
    for (; r > 32; r -= kTileK) step<4>(sum, false);
    if (r > 16) {
      step<2>(sum, false);
    } else if (r > 0) {
      step<1>(sum, false);
    }
    finish_products();
    if (args.bias != nullptr) add_bias(sum, bias, biased);
    store_tile(sum, (row * 2 + block.rank) * kTileM + half * kHalfM, n0);
  }

  // Units beside a tile are too small to keep the matrix units busy, so their products go with
  // those of the tile's next step, one group, and their slot is released with that step's. Their
  // first operand comes through registers, for from shared memory it would take as long as a
  // step's: fragment i, of rows 16 at a time along what is summed up.
  template <bool BIsKN, class Load>
  __device__ void side_products(bool starts, const Load& load, std::uint32_t b, int step_of_b) {
    std::uint32_t a[8][4];
#pragma unroll
    for (int i = 0; i < 8; ++i) load(i, a[i]);
    sync();  // all have read the slot: who waits for these products may release it
    wgmma_fence();
    const std::uint64_t first = tile_descriptor(b, 16);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      // As (K, N), 16 rows on; as (N, K), 16 columns on, and after four the next box.
      const std::uint64_t at_b =
          BIsKN ? first + i * 128 : first + i / 4 * (step_of_b / 16) + i % 4 * 2;
      wgmma_16<BIsKN, T>(side[i % 2], a[i], at_b, !starts || i > 1);
    }
    unit_to_go = at.index;
    at.template advance<Size::kSlots>();
  }

  // h (64 rows of a warpgroup, 16) += x (64, 128) · S (128, 16).
  __device__ void h_unit(bool starts) {
    block.full(at.index).wait(at.parity);
    const std::uint32_t slot = block.slot(at);
    const int lane = thread % 32, row = half * kHalfM + thread / 32 * 16 + lane % 16;
    const std::uint32_t from = slot + row * kRowBytes + ((lane / 16 ^ row % 8) << 4);
    side_products<false>(
        starts,
        [&](int i, std::uint32_t(&a)[4]) {
          // Two pieces on, in swizzled rows.
          load_matrices(a, (from + i / 4 * kXBytes) ^ (i % 4 * 32));
        },
        slot + 2 * kXBytes, 16 * kRowBytes);
  }

  // out (16, 128 columns) += coefficientsᵀ (16, 128 rows) · matrix (128 rows, 128 columns), turned
  // round, for wgmma has 64 rows: side (64 columns of a warpgroup, 16).
  __device__ void outer_unit() {
    block.full(at.index).wait(at.parity);
    const std::uint32_t slot = block.slot(at);
    const int lane = thread % 32, row = lane / 16 * 8 + lane % 8;
    const int piece = thread / 32 * 2 + lane / 8 % 2;
    const std::uint32_t from = slot + half * kXBytes + row * kRowBytes + ((piece ^ row % 8) << 4);
    side_products<true>(
        outer_starts,
        [&](int i, std::uint32_t(&a)[4]) { load_matrices_turned(a, from + i * 16 * kRowBytes); },
        slot + 2 * kXBytes, 0);
  }

  // Leaves this block's sum of a column block in memory; the last of those that share the column
  // block adds them all, always in the same order.
  __device__ void store_outer() {
    wgmma_wait<0>();
    const OuterArguments& outer = args.outer;
    const int column = (units.next - 1) / args.tile_rows;
    const int first = Units::cluster_of(args, column * args.tile_rows);
    const int last = Units::cluster_of(args, (column + 1) * args.tile_rows - 1);
    const auto partial = [&](int segment) {
      return reinterpret_cast<float4*>(
                 outer.partial +
                 ((std::int64_t{column} * outer.segments + segment) * 2 + half) * kOuterPartial) +
             thread;
    };
    float4* const mine = partial((block.cluster - first) * 2 + block.rank);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      __stcg(mine + i * 128,
             make_float4(side[0][i * 4] + side[1][i * 4], side[0][i * 4 + 1] + side[1][i * 4 + 1],
                         side[0][i * 4 + 2] + side[1][i * 4 + 2],
                         side[0][i * 4 + 3] + side[1][i * 4 + 3]));
    }
    const int segments = (last - first + 1) * 2;
    if (!is_last(outer.arrived + column * 2 + half, segments)) return;
    float4 total[2] = {};
    for (int segment = 0; segment < segments; ++segment) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float4 value = __ldcg(partial(segment) + i * 128);
        total[i].x += value.x;
        total[i].y += value.y;
        total[i].z += value.z;
        total[i].w += value.w;
      }
    }
    const bool second = column >= outer.parts[0].col_blocks;
    const OuterPart& part = outer.parts[second ? 1 : 0];
    const int lane = thread % 32;
    const int col = (second ? column - outer.parts[0].col_blocks : column) * kOuterCols +
                    half * 64 + thread / 32 * 16 + lane / 4;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float values[4] = {total[i].x, total[i].y, total[i].z, total[i].w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int r = i * 8 + lane % 4 * 2 + j % 2, c = col + j / 2 * 8;
        if (r < args.rank && c < part.cols) {
          part.out[r * part.rank_stride + c * part.col_stride] = values[j] * part.factor;
        }
      }
    }
  }

  // Whether this warpgroup is the last of `count` that left something in memory for each other.
  // Then it sees what they left.
  __device__ bool is_last(std::uint32_t* arrivals, int count) const {
    __threadfence();
    sync();
    const std::uint32_t arrived = block.shared + Size::kArrived + half * 4;
    if (thread == 0) {
      const unsigned before = atomicAdd(arrivals, 1u);
      __threadfence();
      asm volatile("st.shared.u32 [%0], %1;" ::"r"(arrived), "r"(before) : "memory");
    }
    sync();
    unsigned before;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(before) : "r"(arrived) : "memory");
    return before + 1 == static_cast<unsigned>(count);
  }

  __device__ void add_bias(float (&sum)[TileN / 2], float bias, int biased) const {
    const std::uint32_t at = block.shared + Size::kBias;
    named_sync(3, 256);  // of the tile before, all have read
    if (biased < TileN) {
      asm volatile("st.shared.f32 [%0], %1;" ::"r"(at + biased * 4), "f"(bias) : "memory");
    }
    named_sync(3, 256);
#pragma unroll
    for (int i = 0; i < TileN / 8; ++i) {
      float low, high;
      asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                   : "=f"(low), "=f"(high)
                   : "r"(at + (i * 8 + thread % 4 * 2) * 4)
                   : "memory");
      sum[i * 4] += low;
      sum[i * 4 + 1] += high;
      sum[i * 4 + 2] += low;
      sum[i * 4 + 3] += high;
    }
  }

  // 64 columns at a time, in two buffers in turn: TMA stores one while the other is filled.
  __device__ void store_tile(const float (&sum)[TileN / 2], int m0, int n0) const {
    const std::uint32_t staging = block.shared + Size::kStaging + half * 2 * kBoxBytes;
    const int lane = thread % 32, row = thread / 32 * 16 + lane % 16;
#pragma unroll
    for (int i = 0; i < TileN / 64; ++i) {
      const std::uint32_t buffer = staging + i % 2 * kBoxBytes;
      if (thread == 0) wait_for_store_reads<1>();
      sync();
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        // Four matrices: rows 0-7 and 8-15 of the warp's 16, of two pieces of 8 columns.
        const float* const from = sum + i * 32 + j * 8;
        const int piece = j * 2 + lane / 16;
        store_matrices(buffer + row * kRowBytes + ((piece ^ row % 8) << 4),
                       packed<T>(from[0], from[1]), packed<T>(from[2], from[3]),
                       packed<T>(from[4], from[5]), packed<T>(from[6], from[7]));
      }
      fence_async_shared();
      sync();
      if (thread == 0) {
        store_box(maps.y, buffer, n0 + i * 64, m0);
        commit_stores();
      }
    }
  }
};

#endif

template <class T, int TileN, bool WIsKN, bool Outer>
__global__ void __launch_bounds__(kThreads, 1)
    product(const __grid_constant__ Maps maps, const __grid_constant__ Arguments args) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Size = Sizes<TileN>;
  extern __shared__ __align__(1024) unsigned char shared[];
  Block<TileN> block{shared_address(shared), static_cast<int>(cluster_rank()),
                     static_cast<int>(blockIdx.x / 2)};
  if (threadIdx.x == 0) {
    for (int i = 0; i < Size::kSlots; ++i) {
      block.full(i).init(1);   // who fetches
      block.empty(i).init(4);  // two warpgroups, of two blocks
    }
    Seen{block.shared + Size::kSeen}.set(0);
    publish_barriers();
    prefetch(maps.x);
    prefetch(maps.w);
    prefetch(maps.y);
  }
  wait_for_kernel_before();
  cluster_sync();

  const int warpgroup = static_cast<int>(threadIdx.x / 128);
  if (warpgroup == 0) {
    shrink_registers<40>();
    if (threadIdx.x == 0) fetch<TileN, WIsKN, Outer>(maps, args, block);
    if (threadIdx.x >= 32 && args.rank > 0) {
      prepare<TileN, Outer, T>(args, block, static_cast<int>(threadIdx.x) - 32);
    }
    __syncwarp();
  } else {
    grow_registers<232>();
    Multiplier<T, TileN, WIsKN, Outer> multiplier{maps,
                                                  args,
                                                  block,
                                                  warpgroup - 1,
                                                  static_cast<int>(threadIdx.x % 128),
                                                  Units(args, block.cluster)};
    float sum[TileN / 2];
    if (!beside_tile(args, block.cluster)) {
      for_each_item(args, block.cluster,
                    [&](int row, int part) { multiplier.make_h(sum, row, part); });
    }
    for_each_tile(args, block.cluster,
                  [&](int row, int column) { multiplier.make_tile(sum, row, column); });
    if (multiplier.thread == 0) wait_for_store_reads<0>();
    __syncwarp();
  }
  cluster_sync();  // the other block may still send something here
#endif
}

std::int64_t round_up(std::int64_t value, std::int64_t to) { return (value + to - 1) / to * to; }

// The call's workspace.
struct Layout {
  HopperPlan plan;
  bool w_is_kn = false;
  std::int64_t m, n, k, rank;
  std::int64_t k_blocks, units, flags;
  bool makes_outer = false, copies_s = false, copies_e = false;
  HopperOuterPlan outer;
  std::int64_t column_blocks = 0;
  std::size_t flags_at = 0, s_at = 0, e_at = 0, h_at = 0, partial_at = 0, bytes = 0;
  std::size_t coefficients_at[kMostOuter] = {}, outer_partial_at = 0;

  Layout(const Term& term, const DeviceFacts& facts)
      : w_is_kn(takes_tensor_map(term.w)),
        m(term.x.dim(0)),
        n(term.w.dim(1)),
        k(term.w.dim(0)),
        rank(term.pair.rank()) {
    plan = plan_hopper(m, n, k, rank, facts);
    k_blocks = (k + kTileK - 1) / kTileK;
    const int steps = plan.tile_n == 256 ? steps_of_unit<256>(plan.rank_class)
                                         : steps_of_unit<128>(plan.rank_class);
    units = (k_blocks + steps - 1) / steps;
    if (rank == 0) return;
    makes_outer = hopper_makes_outer(term, facts);
    if (makes_outer) {
      for (const OuterProduct& each : term.outer_products) {
        column_blocks += column_blocks_of(each);
      }
      outer = plan_hopper_outer(plan, k, column_blocks);
    }
    flags = row_flags() + 3 + column_blocks * 2;
    // S and E where they lie, if TMA can fetch and wgmma multiply them there.
    copies_s = !fetched_in_place(s_rows(term), term.multiply);
    copies_e = !fetched_in_place(e_rows(term), term.multiply);
    const auto take = [&](std::int64_t of) {
      const std::size_t at = bytes;
      bytes += static_cast<std::size_t>(round_up(of, 256));
      return at;
    };
    flags_at = take(flags * 4);
    if (copies_s) s_at = take(rank * s_stride() * 2);
    if (copies_e) e_at = take((w_is_kn ? rank : n) * e_stride() * 2);
    h_at = take(m * h_stride() * 2);
    if (plan.h_parts > 1) {
      partial_at = take(plan.h_parts * plan.tile_rows * 2 * kTileM * plan.rank_class * 4);
    }
    if (!makes_outer) return;
    for (std::size_t i = 0; i < term.outer_products.size(); ++i) {
      if (term.outer_products[i].coefficients.present()) {
        coefficients_at[i] = take(m * h_stride() * 2);
      }
    }
    outer_partial_at = take(column_blocks * outer.segments * 2 * kOuterPartial * 4);
  }

  static bool fetched_in_place(const ConstTensorView& rows, DType dtype) {
    return rows.dtype() == dtype && takes_tensor_map(rows);
  }
  // S as (rank, K); E as W lies: (N, rank) or (rank, N).
  static ConstTensorView s_rows(const Term& term) { return term.pair.shrink.transposed(); }
  ConstTensorView e_rows(const Term& term) const {
    return w_is_kn ? term.pair.expand : term.pair.expand.transposed();
  }
  static std::int64_t column_blocks_of(const OuterProduct& outer) {
    return (outer.matrix.dim(1) + kOuterCols - 1) / kOuterCols;
  }
  std::int64_t row_flags() const { return plan.tile_rows * 2 * kFlagsOfRowBlock; }
  std::int64_t s_stride() const { return round_up(k, 8); }
  std::int64_t e_stride() const { return round_up(w_is_kn ? n : rank, 8); }
  std::int64_t h_stride() const { return round_up(rank, 8); }
};

template <class T, int TileN, bool WIsKN, bool Outer = false>
void launch_product(const Call& call, const Maps& maps, const Arguments& args) {
  Launch how;
  how.grid = static_cast<unsigned>(args.clusters * 2);
  how.block = kThreads;
  how.cluster = 2;
  how.shared_bytes = Sizes<TileN>::kEnd;
  how.overlaps = true;
  // Blocks wait for each other: all of them run at once, or none.
  how.cooperative = args.rank > 0;
  call.launch(how, product<T, TileN, WIsKN, Outer>, maps, args);
}

template <class T>
void launch(const Call& call, const Layout& layout, const Maps& maps, const Arguments& args) {
  if (layout.plan.tile_n == 256) {
    if (layout.makes_outer) return launch_product<T, 256, true, true>(call, maps, args);
    if (layout.w_is_kn) return launch_product<T, 256, true>(call, maps, args);
    return launch_product<T, 256, false>(call, maps, args);
  }
  if (layout.w_is_kn) return launch_product<T, 128, true>(call, maps, args);
  return launch_product<T, 128, false>(call, maps, args);
}

template <class T>
void run_as(const char* op, Call& call, const Term& term, std::byte* workspace) {
  const Layout layout(term, call.facts());
  const HopperPlan& plan = layout.plan;
  const DType dtype = term.multiply;
  const ConstTensorView w = layout.w_is_kn ? term.w : term.w.transposed();
  // A block fetches half of a tile's W: as (K, N) in boxes of 64 rows, as (N, K) in one of half a
  // tile.
  const int w_rows = layout.w_is_kn ? kTileK : plan.tile_n / 2;

  Maps maps{};
  maps.x = tensor_map(op, term.x.data(), dtype, layout.m, layout.k, term.x.stride(0), kTileM);
  maps.w = tensor_map(op, w.data(), dtype, w.dim(0), w.dim(1), w.stride(0), w_rows);
  maps.y = tensor_map(op, term.y.data(), dtype, layout.m, layout.n, term.y.stride(0), kHalfM);

  Arguments args{};
  args.m = static_cast<int>(layout.m);
  args.n = static_cast<int>(layout.n);
  args.k_blocks = static_cast<int>(layout.k_blocks);
  args.tile_rows = static_cast<int>(plan.tile_rows);
  args.tile_cols = static_cast<int>(plan.tile_cols);
  args.clusters = plan.clusters;
  if (term.bias.present()) {
    args.bias = term.bias.data();
    args.bias_stride = term.bias.stride(0);
    args.bias_dtype = term.bias.dtype();
  }
  if (layout.rank == 0) return launch<T>(call, layout, maps, args);

  const LowRank& pair = term.pair;
  std::byte* const h = workspace + layout.h_at;
  maps.h = tensor_map(op, h, dtype, layout.m, layout.rank, layout.h_stride(), kTileM);
  args.rank = static_cast<int>(layout.rank);
  args.rank_class = plan.rank_class;
  args.h_stride = static_cast<int>(layout.h_stride());
  args.scaling = pair.scaling;
  args.light_clusters = plan.light_clusters;
  args.light_items = static_cast<int>(plan.light_items);
  args.heavy_items = static_cast<int>(plan.heavy_items);
  args.h_parts = plan.h_parts;
  args.h_every = plan.h_every;
  args.units = static_cast<int>(layout.units);
  args.units_of_part = static_cast<int>((layout.units + plan.h_parts - 1) / plan.h_parts);
  args.h = h;
  args.h_out = pair.h.present() ? pair.h.mutable_data_as<float>() : nullptr;
  args.partial = reinterpret_cast<float*>(workspace + layout.partial_at);
  args.flags = reinterpret_cast<std::uint32_t*>(workspace + layout.flags_at);
  args.flag_count = static_cast<int>(layout.flags);
  args.all_ready = args.flags + layout.row_flags();
  args.copied = args.all_ready + 1;

  const auto copy = [](const ConstTensorView& rows, std::int64_t stride, void* to) {
    return Copy{rows.data(),
                rows.stride(0),
                rows.stride(1),
                rows.dtype(),
                static_cast<int>(rows.dim(0)),
                static_cast<int>(rows.dim(1)),
                static_cast<int>(stride),
                to};
  };
  Copies& copies = args.copies;
  const auto add = [&](const Copy& each) { copies.list[copies.count++] = each; };
  // A matrix where it lies, or the copy of it that the kernel will make.
  const auto place = [&](const ConstTensorView& rows, bool copied, std::int64_t stride,
                         std::size_t at, int box_rows) {
    if (copied) add(copy(rows, stride, workspace + at));
    return tensor_map(op, copied ? workspace + at : rows.data(), dtype, rows.dim(0), rows.dim(1),
                      copied ? stride : rows.stride(0), box_rows);
  };
  maps.s =
      place(Layout::s_rows(term), layout.copies_s, layout.s_stride(), layout.s_at, plan.rank_class);
  copies.of_s = copies.count;
  maps.e = place(layout.e_rows(term), layout.copies_e, layout.e_stride(), layout.e_at, w_rows);
  if (layout.makes_outer) {
    OuterArguments& outer = args.outer;
    outer.every = layout.outer.every;
    outer.units = static_cast<int>(layout.outer.units);
    outer.segments = static_cast<int>(layout.outer.segments);
    outer.partial = reinterpret_cast<float*>(workspace + layout.outer_partial_at);
    outer.arrived = args.copied + 2;
    for (std::size_t i = 0; i < term.outer_products.size(); ++i) {
      const OuterProduct& from = term.outer_products[i];
      OuterPart& part = outer.parts[i];
      part.out = from.out.mutable_data_as<float>();
      part.rank_stride = from.out.stride(0);
      part.col_stride = from.out.stride(1);
      part.cols = static_cast<int>(from.matrix.dim(1));
      part.col_blocks = static_cast<int>(Layout::column_blocks_of(from));
      part.of_h = !from.coefficients.present();
      part.factor = part.of_h ? from.scaling / pair.scaling : from.scaling;  // s·h has one in it
      maps.matrix[i] = tensor_map(op, from.matrix.data(), dtype, layout.m, from.matrix.dim(1),
                                  from.matrix.stride(0), kTileM);
      maps.coefficients[i] = maps.h;
      if (part.of_h) continue;
      maps.coefficients[i] =
          place(from.coefficients, true, layout.h_stride(), layout.coefficients_at[i], kTileM);
    }
  }
  launch<T>(call, layout, maps, args);
}

}  // namespace

std::size_t hopper_workspace_bytes(const Term& term, const DeviceFacts& facts) {
  return Layout(term, facts).bytes;
}

void run_hopper(const char* op, Call& call, const Term& term, std::byte* workspace) {
  if (term.multiply == DType::kFloat16) return run_as<__half>(op, call, term, workspace);
  return run_as<__nv_bfloat16>(op, call, term, workspace);
}

}  // namespace graft::cuda
