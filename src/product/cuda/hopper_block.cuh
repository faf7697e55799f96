#pragma once

#include <cstdint>

#include "backend/cuda/element.cuh"
#include "backend/cuda/sm90.cuh"
#include "graft/tensor_view.h"

// What the blocks of the kernel in hopper.cu are told, what a block has in shared memory, and what
// of the work is its own.

namespace graft::cuda::hopper {

constexpr int kTileM = 128;  // rows of y in a block's tile
constexpr int kTileK = 64;   // 128 bytes of 16-bit elements, the widest row that TMA swizzles
constexpr int kRowBytes = kTileK * 2;
constexpr int kHalfM = 64;  // rows of a warpgroup
constexpr int kXBytes = kTileM * kRowBytes;
constexpr int kNarrow = 16;  // columns of h where it is not part of a wider step
constexpr int kNarrowRowBytes = kNarrow * 2;
constexpr int kNarrowBytes = kTileM * kNarrowRowBytes;
constexpr int kBoxBytes = 64 * kRowBytes;  // of 64 rows
constexpr int kThreads = 384;              // three warpgroups
constexpr int kStagingBytes = 2 * 2 * kBoxBytes;
constexpr int kFlagsOfRowBlock = 3;  // ready; arrived, a warpgroup

constexpr int kMostOuter = 2;            // outer products of a term: dA and dB
constexpr int kOuterCols = 128;          // columns of a matrix in a unit, 64 a warpgroup
constexpr int kBesidePartial = 8 * 128;  // sums of a unit beside a tile, of a warpgroup
constexpr int kMostParts = 4;            // of K, of h

// What a dropout masks: nothing; x, on its way to h; what the pair adds to y, and the first of the
// outer products' matrices.
enum class Drops { kNothing, kX, kY };

template <int TileN>
struct Sizes {
  static constexpr int kSlots = TileN == 256 ? 4 : TileN == 128 ? 6 : 8;
  static constexpr int kSlotBytes = kXBytes + TileN * kRowBytes;
  static constexpr int kRing = 0;  // offsets in shared memory
  static constexpr int kStaging = kRing + kSlots * kSlotBytes;
  static constexpr int kBias = kStaging + kStagingBytes;
  static constexpr int kFull = kBias + TileN * 4;
  static constexpr int kEmpty = kFull + kSlots * 8;
  static constexpr int kArrived = kEmpty + kSlots * 8;
  static constexpr int kSeen = kArrived + 12;  // kArrived: of two warpgroups, and of those that add
  static constexpr int kLeft = kSeen + 4;
  static constexpr int kEnd = kLeft + 8;
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

// The outer products of a term, made in units beside the tiles: see `Multiplier::outer_unit`.
struct OuterArguments {
  OuterPart parts[kMostOuter];
  bool masks_first;        // the first part's matrix is masked, as y is
  int every;               // steps from a unit to the next
  int units;               // column blocks of all parts · cluster rows
  int segments;            // sums of one column block that go through memory, at most
  float* partial;          // [column block][segment][half] of kBesidePartial
  std::uint32_t* arrived;  // [column block][half]
};

struct Arguments {
  int m, n, k_blocks;
  int tile_rows, tile_cols, clusters;
  // The pair.
  int rank, rank_class, h_stride;
  float scaling;  // of the h that is multiplied: s, and the scale of a dropout
  int light_clusters, light_items, heavy_items, h_parts, units, units_of_part;
  int h_every;    // steps between units of h in the first tile of a heavy cluster; 0: before it
  void* h;        // (m, h_stride), s·h in the type that is multiplied
  float* h_out;   // (m, rank), h; or null
  float h_scale;  // of h: that of a dropout on x
  const uint2* masks;         // the bits of a dropout: see hopper_masks.cuh
  const uint2* turned_masks;  // the same of columns, for outer products
  int mask_steps;             // of each row
  float* partial;             // sums over parts of K
  std::uint32_t* flags;       // of row blocks: s·h is there; the first of all flags
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

constexpr int kHalfXBytes = kHalfM * kRowBytes;

// Tiles are made in groups of so many cluster rows, column by column, so that those made at one
// time share what they read of x and W.
constexpr int kGroupRows = 8;

// A count in shared memory that some threads raise and others wait for.
struct Count {
  std::uint32_t address;

  __device__ void set(int count) const {
    asm volatile("st.release.cta.shared.u32 [%0], %1;" ::"r"(address), "r"(count) : "memory");
  }
  __device__ void raise() const {
    asm volatile("red.release.cta.shared.add.u32 [%0], 1;" ::"r"(address) : "memory");
  }
  __device__ void wait(int count) const {
    int seen;
    do {
      asm volatile("ld.acquire.cta.shared.u32 %0, [%1];" : "=r"(seen) : "r"(address) : "memory");
    } while (seen < count);
  }
};

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
  // How far the thread that watches flags in memory has come, for the one that fetches.
  __device__ Count seen() const { return {shared + Size::kSeen}; }
  // Mask bits of x, for a slot that holds what h is made of: where no tile has been staged yet.
  __device__ std::uint32_t masks_of_x(Slot at) const {
    return shared + Size::kStaging + at.index * 2048;
  }
  // Mask bits of the matrix in a slot, beside it and its coefficients.
  __device__ std::uint32_t masks_of_outer(Slot at) const {
    return slot(at) + 2 * kXBytes + kNarrowBytes;
  }
  // So many sums of units beside tiles have been left in memory by the two warpgroups.
  __device__ Count left() const { return {shared + Size::kLeft}; }
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
    return cluster * args.outer.units / args.clusters;
  }
  __device__ static int cluster_of(const Arguments& args, int unit) {
    return ((unit + 1) * args.clusters - 1) / args.outer.units;
  }
  __device__ Units(const Arguments& args, int cluster)
      : next(first_of(args, cluster)), end(first_of(args, cluster + 1)) {}
  // Blocks that share the sums of a column block.
  __device__ static int segments_of(const Arguments& args, int column) {
    return (cluster_of(args, (column + 1) * args.tile_rows - 1) -
            cluster_of(args, column * args.tile_rows) + 1) *
           2;
  }
  // So many go with the next tile: the first one of a cluster is left alone, until h is there.
  __device__ int of_tile(const Arguments& args, bool first_tile) const {
    return first_tile ? 0 : min(end - next, (args.k_blocks - 1) / args.outer.every);
  }
};

// Where a warpgroup leaves its sums over a part of K, in float4: [part][row block][half][rank_class
// / 8] of 128 threads.
__device__ inline float4* h_partial(const Arguments& args, int part, int row_block, int half) {
  const std::int64_t row_blocks = std::int64_t{2} * args.tile_rows;
  return reinterpret_cast<float4*>(args.partial) +
         ((part * row_blocks + row_block) * 2 + half) * (args.rank_class / 8 * 128);
}

// Where a block leaves its sums over a column block of an outer product: [column
// block][segment][half].
__device__ inline float4* outer_partial(const Arguments& args, int column, int segment, int half) {
  return reinterpret_cast<float4*>(
      args.outer.partial +
      ((std::int64_t{column} * args.outer.segments + segment) * 2 + half) * kBesidePartial);
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

// Two neighbours of a row of h; and s·h, scaled in float32 before it is rounded, so that it
// overflows no sooner than itself.
template <class T>
__device__ void store_h(const Arguments& args, int row, int column, float low, float high) {
  if (row >= args.m || column >= args.h_stride) return;
  T* const to = static_cast<T*>(args.h) + std::int64_t{row} * args.h_stride + column;
  *reinterpret_cast<std::uint32_t*>(to) = packed<T>(low * args.scaling, high * args.scaling);
  if (args.h_out == nullptr) return;
  float* const out = args.h_out + std::int64_t{row} * args.rank + column;
  if (column < args.rank) out[0] = low * args.h_scale;
  if (column + 1 < args.rank) out[1] = high * args.h_scale;
}

#endif

}  // namespace graft::cuda::hopper
