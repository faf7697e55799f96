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
constexpr int kCopyThreads = 96;           // of them, that copy
constexpr int kStagingBytes = 2 * 2 * kBoxBytes;
constexpr int kFlagsOfRowBlock = 3;  // ready; arrived, a warpgroup

constexpr int kMostLayers = 3;           // terms of one x: q, k and v
constexpr int kMostOuter = 2;            // outer products of a term: dA and dB
constexpr int kBesidePartial = 8 * 128;  // sums of a unit beside a tile, of a warpgroup

// What a dropout masks: nothing; x, on its way to h; what the pair adds to y, and the matrix of the
// outer product whose columns those of y are; what the pair adds to y, where h is there before the
// tiles, which then begin with it.
enum class Drops { kNothing, kX, kY, kYFirst };

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
  static constexpr int kSums = kLeft + 8;  // kSums, kTaken: barriers of sums that meet in a cluster
  static constexpr int kTaken = kSums + 8;
  static constexpr int kUnitFull = kTaken + 8;  // of a unit that has a place of its own
  static constexpr int kUnitEmpty = kUnitFull + 8;
  static constexpr int kEnd = kUnitEmpty + 8;
};

// A unit of an outer product is 128 rows by 128 columns, 64 of which are a warpgroup's; by 64 where
// the slots are smaller, and then a warpgroup has 64 of the rows.
constexpr int outer_columns(int tile_n) { return tile_n == 256 ? 128 : 64; }

// What the slots hold while h is made: so many steps of x and S. At rank 16 two steps of x fill a
// slot of a tile of 128 columns, and S goes to the staging buffers, which are free until there is a
// tile; unless masks of x are there.
template <int TileN>
__host__ __device__ constexpr int steps_of_unit(int rank_class, bool masks_x = false) {
  if (TileN == 256) return rank_class <= 64 ? 2 : 1;
  return TileN == 128 && rank_class == 16 && !masks_x ? 2 : 1;
}

// Divides by a number that the host knows, for counts below 2^31. A division takes some hundred
// clocks, and those who fetch and multiply would wait for it before their first step.
struct Divisor {
  std::uint32_t factor = 0x80000001u;  // of 1
  int shift = 0;

  Divisor() = default;
  explicit Divisor(std::int64_t by) {  // 1 or more
    while (std::int64_t{1} << shift < by) ++shift;
    factor = static_cast<std::uint32_t>((std::int64_t{1} << (31 + shift)) / by + 1);
  }
#ifdef __CUDACC__
  __device__ int divide(int n) const {
    return static_cast<int>(__umulhi(static_cast<std::uint32_t>(n) << 1, factor) >> shift);
  }
#endif
};

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
  Copy list[2 * kMostLayers + kMostOuter];
  int count = 0, of_s = 0;  // S comes first, if it is copied
  int of_pair = 0;          // then E, and coefficients of outer products
};

struct Maps {
  CUtensorMap x, s;
  CUtensorMap x_end;  // in boxes of the rows that the last row block has, if it isn't whole
  CUtensorMap w[kMostLayers], y[kMostLayers], e[kMostLayers], h[kMostLayers];
  CUtensorMap matrix[kMostOuter], coefficients[kMostOuter];
};

// One of the terms that share x: its tiles lie beside those of the others, and its columns of h
// beside theirs.
struct Layer {
  int first_column;  // of its tiles
  int first_rank;    // of its columns of h, a multiple of 16
  int n, rank;
  float scaling;     // of the h that is multiplied: s, and the scale of a dropout
  float* h_out;      // (m, rank), h; or null
  const void* bias;  // or null
  std::int64_t bias_stride;
  DType bias_dtype;
};

// Of a kernel of its own, for it costs the others 0.7 % to have the code:
// columns of y that are made with h, as more columns of its products, behind the others.
struct Ragged {
  int count;  // 0: none
  int ranks;  // columns before them: 16 of h, or none
  int first;  // their place in y, and in a bias
  void* y;    // the first of them
  std::int64_t y_stride;
  const void* e;  // of them, (rank, count)
  std::int64_t e_rank_stride, e_col_stride;
  DType e_dtype;
};

// One outer product, out (rank, cols) = factor · coefficientsᵀ · matrix.
struct OuterPart {
  float* out;
  std::int64_t rank_stride, col_stride;
  float factor;
  int cols;
  int first_block;  // of its column blocks, among those of all parts
  int units;        // its column blocks · cluster rows
  int workers;      // clusters that share them out, from the last one on
  Divisor by_units, by_workers;
  bool of_h;    // its coefficients are the s·h that this kernel makes
  bool masked;  // its matrix is, as y is
};

// The outer products of a term, made in units beside the tiles: see `Multiplier::outer_unit`. Those
// of given coefficients come first.
struct OuterArguments {
  OuterPart parts[kMostOuter];
  int count;
  // That of x with given coefficients (m, rank), if it is made where h is.
  OuterPart ridden;
  bool rides;
  const float* coefficients;   // its; or those of a column block that is made in a cluster
  float* ridden_partial;       // [column block][row block][half] of kBesidePartial
  int every;                   // steps from a unit to the next
  int first;                   // steps before the first one in a cluster's first tile
  int of_first_tile, of_tile;  // units that go between a tile's steps, at most
  bool late;                   // those of h are at the end of that tile
  int apart, ahead;            // steps between them; that are left then
  bool in_cluster;             // each cluster makes all of a column block: see `make_in_cluster`
  int segments;                // sums of one column block that go through memory, at most
  float* partial;              // [column block][segment][half] of kBesidePartial
  std::uint32_t* arrived;      // [column block][half]
};

struct Arguments {
  int m, n, k_blocks;
  int tile_rows, tile_cols, clusters;
  Divisor by_tile_rows, by_group_tiles, by_last_rows;  // a group's tiles; rows of the last group
  Layer layers[kMostLayers];
  int layer_count;
  int end_bytes;  // of a box of x_end
  Ragged ragged;
  // The pairs, and what is made as their h is.
  int rank, rank_class, h_stride;  // rank: columns of h, of all layers; 0: no pair. Class 0: no h
  int light_clusters, light_rows;  // the latter cluster rows of h are the former's
  int light_parts;                 // in so many parts: 1 or h_parts
  int h_parts, units, units_of_part;
  Divisor by_light_parts, by_h_parts;
  int h_every;    // steps between units of h in the first tile of a heavy cluster; 0: before it
  int h_first;    // steps before the first one
  bool h_before;  // the kernel before made h (and copies): nothing here makes any
  void* h;        // (m, h_stride), s·h in the type that is multiplied
  float h_scale;  // of h that is kept: that of a dropout on x
  const uint2* masks;         // the bits of a dropout: see hopper_masks.cuh
  const uint2* turned_masks;  // the same of columns, for outer products
  int mask_steps;             // of each row
  float* partial;             // sums over parts of K
  std::uint32_t* flags;       // of row blocks: s·h is there; the first of all flags
  int flag_count;
  std::uint32_t* copied;     // raised by each block: S is copied; the rest is
  Copies copies;             // S, E, and coefficients of outer products
  std::uint32_t* all_ready;  // raised with every flag of a row block
  OuterArguments outer;
  // The next kernel makes outer products of h, and may start when all of h is there.
  bool outer_follows;
};

// Tiles are made in groups of so many cluster rows, column by column, so that those made at one
// time share what they read of x and W.
constexpr int kGroupRows = 8;

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

constexpr int kHalfXBytes = kHalfM * kRowBytes;

// How far the thread that watches flags has come: S is copied; everything is; and then one more for
// each of h of the first tile's rows, of all rows (the other way round if outer products of h are
// at the end of that tile), and of each other tile's rows.
constexpr int kSeenS = 1, kSeenCopies = 2, kSeenAll = 1 << 30;

// A count in shared memory that some threads raise and others wait for.
struct Count {
  std::uint32_t address;

  __device__ void set(int count) const {
    asm volatile("st.release.cta.shared.u32 [%0], %1;" ::"r"(address), "r"(count) : "memory");
  }
  __device__ void raise() const {
    asm volatile("red.release.cta.shared.add.u32 [%0], 1;" ::"r"(address) : "memory");
  }
  __device__ int seen() const {
    int count;
    asm volatile("ld.acquire.cta.shared.u32 %0, [%1];" : "=r"(count) : "r"(address) : "memory");
    return count;
  }
  __device__ void wait(int count) const {
    while (seen() < count) {
    }
  }
  // The same of one that is raised after microseconds: loads in a row would take shared memory's
  // time from who multiplies.
  __device__ void wait_late(int count) const {
    while (seen() < count) __nanosleep(200);
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
  // Where the S of a unit of h is, behind so many boxes of x.
  __device__ std::uint32_t s_of(Slot at, int boxes, int bytes) const {
    const bool fits = boxes * kXBytes + bytes <= Size::kSlotBytes;
    return fits ? slot(at) + boxes * kXBytes : shared + Size::kStaging + at.index * bytes;
  }
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
  // Where no tile is staged before an only one has been made, units of outer products that a
  // cluster makes whole column blocks of have a place of their own. Sums that meet in the cluster,
  // for its blocks to add up: eight of the product's rows, warpgroup.
  __device__ std::uint32_t sums_at(int eight, int half, int thread) const {
    return shared + Size::kStaging + ((eight * 2 + half) * 128 + thread) * 16;
  }
  // A unit's matrix, and its coefficients by cluster rows, of which there are kMostUnitRows.
  __device__ std::uint32_t unit_matrix() const { return shared + Size::kStaging + kBoxBytes; }
  __device__ std::uint32_t unit_coefficients(int row) const {
    return unit_matrix() + kXBytes + row * kNarrowBytes;
  }
  __device__ Barrier unit_full() const { return {shared + Size::kUnitFull}; }
  __device__ Barrier unit_empty() const { return {shared + Size::kUnitEmpty}; }
  // Both blocks have left their sums; both have taken them all.
  __device__ Barrier sums() const { return {shared + Size::kSums}; }
  __device__ Barrier taken() const { return {shared + Size::kTaken}; }
  // So many sums of units beside tiles have been left in memory by the two warpgroups.
  __device__ Count left() const { return {shared + Size::kLeft}; }
};

// The items of h that fall to a cluster. The light ones take the first cluster rows, whole or, if
// there are many, in parts, and the others parts of the rest; in turns, so that what is waited for
// first comes first.
struct Items {
  const Arguments& args;
  bool light;
  int next, step, end;

  __device__ Items(const Arguments& arguments, int cluster)
      : args(arguments),
        light(cluster < arguments.light_clusters),
        next(light ? cluster : cluster - arguments.light_clusters),
        step(light ? arguments.light_clusters : arguments.clusters - arguments.light_clusters),
        end(light ? arguments.light_rows * arguments.light_parts
                  : (arguments.tile_rows - arguments.light_rows) * arguments.h_parts) {}
  __device__ bool any() const { return next < end; }
  __device__ void advance() { next += step; }
  __device__ int parts() const { return light ? args.light_parts : args.h_parts; }
  __device__ int whole() const {
    return (light ? args.by_light_parts : args.by_h_parts).divide(next);
  }
  __device__ int row() const { return (light ? 0 : args.light_rows) + whole(); }
  __device__ int part() const { return next - whole() * parts(); }
  __device__ int first_unit() const { return part() * args.units_of_part; }
  __device__ int end_unit() const {
    return parts() == 1 ? args.units : min(first_unit() + args.units_of_part, args.units);
  }
};

// Whether a kernel's term is alone: with outer products, or masks of its own.
constexpr bool is_alone(bool outer, Drops dropped) { return outer || dropped != Drops::kNothing; }

// The layer of a tile's column.
template <bool Alone>
__device__ int layer_of(const Arguments& args, int column) {
  int layer = 0;
  if constexpr (!Alone) {
    while (layer + 1 < args.layer_count && column >= args.layers[layer + 1].first_column) ++layer;
  }
  return layer;
}

struct TilePlace {
  int row, column;
};
__device__ inline TilePlace place_of(const Arguments& args, int tile) {
  const int group_tiles = kGroupRows * args.tile_cols;
  const int group = args.by_group_tiles.divide(tile), in_group = tile - group * group_tiles;
  const int rows = min(kGroupRows, args.tile_rows - group * kGroupRows);
  const int column = rows == kGroupRows
                         ? static_cast<int>(static_cast<unsigned>(in_group) / kGroupRows)
                         : args.by_last_rows.divide(in_group);
  return {group * kGroupRows + in_group - column * rows, column};
}

// The tiles of a cluster are every `clusters`-th one. The last clusters, which are not light,
// begin; or, where h is made before, the first ones: the last ones wait until it is.
__device__ inline int first_tile_of(const Arguments& args, int cluster) {
  return args.h_before ? cluster : args.clusters - 1 - cluster;
}
__device__ inline int tiles_of(const Arguments& args) { return args.tile_rows * args.tile_cols; }

// Calls `make(row of clusters, column)` for each tile of this cluster.
template <class Make>
__device__ void for_each_tile(const Arguments& args, int cluster, Make&& make) {
  for (int tile = first_tile_of(args, cluster); tile < tiles_of(args); tile += args.clusters) {
    const TilePlace place = place_of(args, tile);
    make(place.row, place.column);
  }
}

// Whether this cluster makes its items of h beside its first tile, and not before it.
__device__ inline bool beside_tile(const Arguments& args, int cluster) {
  return args.h_every > 0 && cluster >= args.light_clusters;
}

// The units of outer products that fall to a cluster: of each part a run, in which the cluster rows
// of one column block follow each other.
struct Units {
  const Arguments& args;
  int cluster, part = 0, next = 0, end = 0;
  bool first_tile = true;

  __device__ Units(const Arguments& arguments, int of_cluster)
      : args(arguments), cluster(of_cluster) {
    begin();
  }
  __device__ int worker() const { return args.clusters - 1 - cluster; }
  __device__ int first_of(int of, int by) const {
    const OuterPart& it = args.outer.parts[of];
    return by >= it.workers ? it.units : it.by_workers.divide(by * it.units);
  }
  __device__ int worker_of(int unit) const {
    const OuterPart& it = args.outer.parts[part];
    return it.by_units.divide((unit + 1) * it.workers - 1);
  }
  __device__ void begin() {
    for (; part < args.outer.count; ++part) {
      next = first_of(part, worker()), end = first_of(part, worker() + 1);
      if (next < end) return;
    }
  }
  __device__ bool any() const { return part < args.outer.count; }
  // Whether there were any from the beginning, of a product or of one of them.
  __device__ bool has(int product) const { return worker() < args.outer.parts[product].workers; }
  __device__ bool has_some() const { return has(0) || (args.outer.count == 2 && has(1)); }

  // How many go with the next tile, after every so many steps; and at its end. h is there after the
  // first tile, and coefficients are copied while it begins.
  __device__ int of_tile() const {
    return first_tile ? min(left(true, false), args.outer.of_first_tile)
                      : min(left(true, true), args.outer.of_tile);
  }
  __device__ int at_end() const { return first_tile && args.outer.late ? left(false, true) : 0; }
  // Units to come, of parts of given coefficients and of h.
  __device__ int left(bool given, bool made) const {
    int sum = 0;
    for (int i = part; i < args.outer.count; ++i) {
      if (args.outer.parts[i].of_h ? !made : !given) continue;
      sum += first_of(i, worker() + 1) - (i == part ? next : first_of(i, worker()));
    }
    return sum;
  }
  // The step that unit i of these comes before.
  __device__ int step_of(int i) const {
    return first_tile ? args.outer.first + i * args.outer.every : (i + 1) * args.outer.every;
  }
  __device__ int step_at_end(int i, int count) const {
    return args.k_blocks - 1 - args.outer.ahead - args.outer.apart * (count - 1 - i);
  }

  __device__ const OuterPart& of() const { return args.outer.parts[part]; }
  __device__ int row() const { return next - column() * args.tile_rows; }
  __device__ int column() const { return args.by_tile_rows.divide(next); }  // of its part's
  // Clusters whose sums of this column block go through memory, and which of them this one is.
  __device__ int sharers() const {
    const int first = column() * args.tile_rows;
    return worker_of(first + args.tile_rows - 1) - worker_of(first) + 1;
  }
  __device__ int share() const { return worker() - worker_of(column() * args.tile_rows); }
  // Whether the unit is this cluster's first of its column block; its last.
  __device__ bool starts() const { return next == first_of(part, worker()) || row() == 0; }
  __device__ bool ends() const { return next + 1 == end || row() + 1 == args.tile_rows; }
  __device__ void advance() {
    if (++next < end) return;
    ++part;
    begin();
  }
  // To the next column block, for who does nothing but add up.
  __device__ void advance_column() {
    next = (column() + 1) * args.tile_rows;
    if (next < end) return;
    ++part;
    begin();
  }
};

// Where a warpgroup leaves its sums over a part of K, in float4: [row block][part][half][rank_class
// / 8] of 128 threads. Row blocks are counted from those that are made in parts.
__device__ inline float4* h_partial(const Arguments& args, int part, int row_block, int half) {
  const std::int64_t row = row_block - (args.light_parts > 1 ? 0 : 2 * args.light_rows);
  return reinterpret_cast<float4*>(args.partial) +
         ((row * args.h_parts + part) * 2 + half) * (args.rank_class / 8 * 128);
}

// Where a warpgroup leaves its sums over a column block of an outer product, in float4: [column
// block][block][half] of 128 threads and two.
__device__ inline float4* outer_partial(const Arguments& args, int column, int block, int half) {
  return reinterpret_cast<float4*>(args.outer.partial) +
         ((std::int64_t{column} * args.outer.segments + block) * 2 + half) * (kBesidePartial / 4);
}

// Sums of an outer product: float4 i % 128 of an eight of its rows, i / 128, of 64 columns.
__device__ inline void store_outer(const Arguments& args, const OuterPart& part, int first_column,
                                   int i, const float4& total) {
  const int t = i % 128, r = i / 128 * 8 + t % 4 * 2;
  const int col = first_column + t / 32 * 16 + t % 32 / 4;
  const auto put = [&](int at_r, int at_col, float value) {
    if (at_r >= args.layers[0].rank || at_col >= part.cols) return;
    part.out[at_r * part.rank_stride + at_col * part.col_stride] = value * part.factor;
  };
  put(r, col, total.x);
  put(r + 1, col, total.y);
  put(r, col + 8, total.z);
  put(r + 1, col + 8, total.w);
}

// Eight of a row of given coefficients, as TMA would put them into shared memory.
template <class T>
__device__ void put_coefficients(const Arguments& args, std::uint32_t to, int row, int eight) {
  float values[8];
  const int rank = args.layers[0].rank;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int r = eight * 8 + i;
    values[i] =
        row < args.m && r < rank ? args.outer.coefficients[std::int64_t{row} * rank + r] : 0.0f;
  }
  const int at_row = row % kTileM;
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to + at_row * kNarrowRowBytes +
                                                                ((eight ^ at_row / 4 % 2) << 4)),
               "r"(pack2<T>(values[0], values[1])), "r"(pack2<T>(values[2], values[3])),
               "r"(pack2<T>(values[4], values[5])), "r"(pack2<T>(values[6], values[7]))
               : "memory");
}

// Where it leaves those over a row block, of the outer product that is made where h is.
__device__ inline float4* ridden_partial(const Arguments& args, int column, int row_block,
                                         int half) {
  return reinterpret_cast<float4*>(args.outer.ridden_partial) +
         ((std::int64_t{column} * args.tile_rows * 2 + row_block) * 2 + half) *
             (kBesidePartial / 4);
}

// Which layer's a column of h is.
__device__ inline const Layer& layer_of_rank(const Arguments& args, int column) {
  int of = 0;
  while (of + 1 < args.layer_count && column >= args.layers[of + 1].first_rank) ++of;
  return args.layers[of];
}

// Two neighbours of a row of h; and s·h, scaled in float32 before it is rounded, so that it
// overflows no sooner than itself.
template <class T>
__device__ void store_h(const Arguments& args, int row, int column, float low, float high) {
  const Layer& layer = layer_of_rank(args, column);
  const int rank = column - layer.first_rank;
  if (row >= args.m || rank >= layer.rank) return;
  T* const to = static_cast<T*>(args.h) + std::int64_t{row} * args.h_stride + column;
  *reinterpret_cast<std::uint32_t*>(to) = pack2<T>(low * layer.scaling, high * layer.scaling);
  if (layer.h_out == nullptr) return;
  float* const out = layer.h_out + std::int64_t{row} * layer.rank + rank;
  out[0] = low * args.h_scale;
  if (rank + 1 < layer.rank) out[1] = high * args.h_scale;
}

#endif

}  // namespace graft::cuda::hopper
