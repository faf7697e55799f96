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
constexpr int kOuterRank = 16;          // wgmma's columns there
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
  static constexpr int kEnd = kArrived + 8;
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

  __host__ __device__ int chunks() const { return outer * (stride / 8); }
};

struct Copies {
  Copy list[2 + kMostOuter];
  int count = 0;
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
  void* h;                // (m, h_stride), s·h in the type that is multiplied
  float* h_out;           // (m, rank), h; or null
  float* partial;         // sums over parts of K
  std::uint32_t* flags;   // of row blocks: s·h is there
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

template <class From, class To>
__device__ void copy_chunk(const Copy& copy, unsigned chunk) {
  // Neighbouring threads read neighbouring elements, whichever way they lie.
  const unsigned chunks = static_cast<unsigned>(copy.stride) / 8;
  const unsigned outer = static_cast<unsigned>(copy.outer);
  const bool along = copy.inner_stride == 1;
  const std::int64_t row = along ? chunk / chunks : chunk % outer;
  const int first = static_cast<int>(along ? chunk % chunks : chunk / outer) * 8;
  const From* const from = static_cast<const From*>(copy.from) + row * copy.outer_stride;
  Pack<To, 8> out;
  const bool whole =
      along && first + 8 <= copy.inner && reinterpret_cast<std::uintptr_t>(from + first) % 16 == 0;
  if (whole) {
    const Pack<From, 8> in = *reinterpret_cast<const Pack<From, 8>*>(from + first);
#pragma unroll
    for (int i = 0; i < 8; ++i) out.values[i] = from_float<To>(to_float(in.values[i]));
    *reinterpret_cast<Pack<To, 8>*>(static_cast<To*>(copy.to) + row * copy.stride + first) = out;
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int column = first + i;
    out.values[i] =
        from_float<To>(column < copy.inner ? to_float(from[column * copy.inner_stride]) : 0.0f);
  }
  *reinterpret_cast<Pack<To, 8>*>(static_cast<To*>(copy.to) + row * copy.stride + first) = out;
}

// This block's share, by the threads of three warps.
constexpr int kCopyThreads = 96;
template <class To>
__device__ void copy_share(const Copy& copy, int thread) {
  const unsigned step = gridDim.x * kCopyThreads;
  unsigned chunk = blockIdx.x * kCopyThreads + thread;
  const unsigned end = static_cast<unsigned>(copy.chunks());
  switch (copy.dtype) {
    case DType::kFloat16:
      for (; chunk < end; chunk += step) copy_chunk<__half, To>(copy, chunk);
      break;
    case DType::kBFloat16:
      for (; chunk < end; chunk += step) copy_chunk<__nv_bfloat16, To>(copy, chunk);
      break;
    default:
      for (; chunk < end; chunk += step) copy_chunk<float, To>(copy, chunk);
  }
}

// Warpgroup 0, the warps that don't fetch: this block's share of the copies.
template <class T>
__device__ void copy(const Arguments& args, int thread) {
  const auto publish = [&](std::uint32_t* flag) {
    fence_async();  // TMA reads them
    __threadfence();
    named_sync(4, kCopyThreads);
    if (thread == 0) raise_release(flag);
  };
  copy_share<T>(args.copies.list[0], thread);
  wait_for_kernel_before();  // the flags are zero
  publish(args.copied);
  for (int i = 1; i < args.copies.count; ++i) copy_share<T>(args.copies.list[i], thread);
  publish(args.copied + 1);
}

// Until a flag has been raised so often: what was written before that can be fetched by TMA.
__device__ inline void wait_for(const std::uint32_t* flag, std::uint32_t count) {
  while (load_acquire(flag) < count) {
  }
  fence_async();
}

// Warpgroup 0, one thread: fills the ring.
template <int TileN, bool WIsKN, bool Outer>
__device__ void fetch(const Maps& maps, const Arguments& args, const Block<TileN>& block) {
  using Size = Sizes<TileN>;
  Slot at{0, 1};   // of new barriers, the phase before the first one: all slots are empty
  int copied = 0;  // so many flags of copies are known to be up
  const auto wait_for_copies = [&](int flags) {
    if (copied == 0) wait_for_kernel_before();  // until then flags are not zero
    for (; copied < flags; ++copied) wait_for(args.copied + copied, gridDim.x);
  };

  for_each_item(args, block.cluster, [&](int row, int part) {
    wait_for_copies(1);
    const int steps = steps_of_unit<TileN>(args.rank_class), s_bytes = args.rank_class * kRowBytes;
    const int m0 = (row * 2 + block.rank) * kTileM;
    const int end = min((part + 1) * args.units_of_part, args.units);
    for (int unit = part * args.units_of_part; unit < end; ++unit) {
      const Barrier full = block.full(at.index);
      block.empty(at.index).wait(at.parity);
      full.arrive_and_expect(steps * (kXBytes + s_bytes));
      for (int i = 0; i < steps; ++i) {
        const int k = (unit * steps + i) * kTileK;
        load_box(block.slot(at) + i * kXBytes, maps.x, full, k, m0);
        load_box(block.slot(at) + steps * kXBytes + i * s_bytes, maps.s, full, k, 0);
      }
      at.advance<Size::kSlots>();
    }
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
  bool all_ready = false;
  const auto fill_unit = [&](int unit) {
    int column = unit / args.tile_rows;
    const int m0 = (unit % args.tile_rows * 2 + block.rank) * kTileM;
    const int part = column < args.outer.parts[0].col_blocks ? 0 : 1;
    if (part == 1) column -= args.outer.parts[0].col_blocks;
    if (args.outer.parts[part].of_h && !all_ready) {
      wait_for(args.all_ready, (args.m + kTileM - 1) / kTileM * 2);
      all_ready = true;
    }
    wait_for_copies(2);
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
    const int unit_count = Outer ? units.of_tile(args, first_tile) : 0;
    for (int i = 0, done = 0; i < args.k_blocks; ++i) {
      if (done < unit_count && i == (done + 1) * args.outer.every) {
        fill_unit(units.next++);
        ++done;
      }
      fill(maps.x, maps.w, m0, n0, i * kTileK);
    }
    first_tile = false;
    if (args.rank == 0) return;
    wait_for_copies(2);
    if (m0 < args.m) wait_for(args.flags + row_block * kFlagsOfRowBlock, 2);
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
  bool first_tile = true;
  float side[2][8];  // sums of an outer product: 64 columns by 16, in two halves that don't wait
                     // for each other

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
    if constexpr (Outer) {
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
      wgmma<TileN, false, WIsKN, T>(sum, a + i * 2, b + i * (WIsKN ? 128 : 2), !first || i > 0);
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
              wgmma<R, false, false, T>(second, a + j * 2, b + j * 2, add);
            } else {
              wgmma<R, false, false, T>(sum, a + j * 2, b + j * 2, add);
            }
          } else {
            wgmma<R, false, false, T>(sum, a + j * 2, b + j * 2, !first || i + j > 0);
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
  template <int R>
  __device__ bool add_parts(float (&sum)[TileN / 2], int row_block, int part) const {
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
  template <int R>
  __device__ void store_h(const float (&sum)[TileN / 2], int row_block) const {
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
    const int biased = half * 128 + thread;
    if (args.bias != nullptr && biased < TileN && n0 + biased < args.n) {
      bias = load_as_float(args.bias, args.bias_dtype, (n0 + biased) * args.bias_stride);
    }
    step<4>(sum, true);
    int i = 1;
    if constexpr (Outer) {
      const int end = units.next + units.of_tile(args, first_tile);
      for (first_tile = false; units.next < end;) {
        for (int before = 1; before < args.outer.every; ++before, ++i) step<4>(sum, false);
        unit();
        step<4>(sum, false);
        ++i;
        if (++units.next == units.end || units.next % args.tile_rows == 0) store_outer();
      }
    }
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

  // Adds a unit to an outer product: out (16, 128 columns) += coefficientsᵀ (16, 128 rows) · matrix
  // (128 rows, 128 columns), turned round, for wgmma has 64 rows: side (64 columns of a warpgroup,
  // 16).
  //
  // Such products are too small to keep the matrix units busy, so they go with those of the next
  // step of the tile, one group, and their slot is released with that step's.
  __device__ void unit() {
    block.full(at.index).wait(at.parity);
    const std::uint32_t slot = block.slot(at);
    const std::uint64_t a = tile_descriptor(slot + half * kXBytes, 16);
    const std::uint64_t b = tile_descriptor(slot + 2 * kXBytes, 16);
    const bool starts =
        units.next % args.tile_rows == 0 || units.next == Units::first_of(args, block.cluster);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kTileM / 16; ++i) {
      wgmma<kOuterRank, true, true, T>(side[i % 2], a + i * 128, b + i * 128, !starts || i > 1);
    }
    unit_to_go = at.index;
    at.template advance<Size::kSlots>();
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
    publish_barriers();
    prefetch(maps.x);
    prefetch(maps.w);
    prefetch(maps.y);
  }
  // A kernel that follows others at once waits for them here; one that has a pair follows
  // `zero_flags`, which has waited for them, and waits for that itself where it needs flags.
  if (args.rank == 0) wait_for_kernel_before();
  cluster_sync();

  const int warpgroup = static_cast<int>(threadIdx.x / 128);
  if (warpgroup == 0) {
    shrink_registers<40>();
    if (threadIdx.x == 0) fetch<TileN, WIsKN, Outer>(maps, args, block);
    if (threadIdx.x >= 32 && args.rank > 0) copy<T>(args, static_cast<int>(threadIdx.x) - 32);
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
    for_each_item(args, block.cluster,
                  [&](int row, int part) { multiplier.make_h(sum, row, part); });
    for_each_tile(args, block.cluster,
                  [&](int row, int column) { multiplier.make_tile(sum, row, column); });
    if (multiplier.thread == 0) wait_for_store_reads<0>();
    __syncwarp();
  }
  cluster_sync();  // the other block may still send something here
#endif
}

// Before a product with a pair: zeroes its flags. The product starts while this runs, and waits for
// it where it first needs them.
constexpr int kZeroThreads = 128;
__global__ void __launch_bounds__(kZeroThreads) zero_flags(std::uint32_t* flags, int count) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  wait_for_kernel_before();
  let_kernel_after_start();
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kZeroThreads) flags[i] = 0;
#endif
}

std::int64_t round_up(std::int64_t value, std::int64_t to) { return (value + to - 1) / to * to; }

// The call's workspace.
struct Layout {
  HopperPlan plan;
  bool w_is_kn = false;
  std::int64_t m, n, k, rank;
  std::int64_t k_blocks, units, flags;
  bool makes_outer = false;
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
    const auto take = [&](std::int64_t of) {
      const std::size_t at = bytes;
      bytes += static_cast<std::size_t>(round_up(of, 256));
      return at;
    };
    flags_at = take(flags * 4);
    s_at = take(rank * s_stride() * 2);
    e_at = take((w_is_kn ? rank : n) * e_stride() * 2);
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
  std::byte* const s = workspace + layout.s_at;
  std::byte* const e = workspace + layout.e_at;
  std::byte* const h = workspace + layout.h_at;
  maps.s = tensor_map(op, s, dtype, layout.rank, layout.k, layout.s_stride(), plan.rank_class);
  maps.e = tensor_map(op, e, dtype, layout.w_is_kn ? layout.rank : layout.n,
                      layout.w_is_kn ? layout.n : layout.rank, layout.e_stride(), w_rows);
  maps.h = tensor_map(op, h, dtype, layout.m, layout.rank, layout.h_stride(), kTileM);
  args.rank = static_cast<int>(layout.rank);
  args.rank_class = plan.rank_class;
  args.h_stride = static_cast<int>(layout.h_stride());
  args.scaling = pair.scaling;
  args.light_clusters = plan.light_clusters;
  args.light_items = static_cast<int>(plan.light_items);
  args.heavy_items = static_cast<int>(plan.heavy_items);
  args.h_parts = plan.h_parts;
  args.units = static_cast<int>(layout.units);
  args.units_of_part = static_cast<int>((layout.units + plan.h_parts - 1) / plan.h_parts);
  args.h = h;
  args.h_out = pair.h.present() ? pair.h.mutable_data_as<float>() : nullptr;
  args.partial = reinterpret_cast<float*>(workspace + layout.partial_at);
  args.flags = reinterpret_cast<std::uint32_t*>(workspace + layout.flags_at);
  args.all_ready = args.flags + layout.row_flags();
  args.copied = args.all_ready + 1;

  // S as (rank, K); E as W lies: (N, rank) or (rank, N).
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
  add(copy(pair.shrink.transposed(), layout.s_stride(), s));
  add(copy(layout.w_is_kn ? pair.expand : pair.expand.transposed(), layout.e_stride(), e));
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
      std::byte* const to = workspace + layout.coefficients_at[i];
      add(copy(from.coefficients, layout.h_stride(), to));
      maps.coefficients[i] =
          tensor_map(op, to, dtype, layout.m, layout.rank, layout.h_stride(), kTileM);
    }
  }
  Launch how;
  how.grid = 1;
  how.block = kZeroThreads;
  how.overlaps = true;
  call.launch(how, zero_flags, args.flags, static_cast<int>(layout.flags));
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
