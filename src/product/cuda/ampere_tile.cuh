#pragma once

#include <iterator>
#include <type_traits>

#include "backend/cuda/mma.cuh"
#include "backend/cuda/philox.cuh"
#include "product/cuda/ampere_operand.cuh"
#include "product/cuda/ampere_shrink.cuh"

// y = [ x | s·h ] · [ W ; E ] + bias on sm_80 and later.
//
//               N: 8 warps as 2 × 4
//            ┌──────┬──────┬──────┬──────┐         a step: kDepth of K, kStages steps in flight
//     128    │ w0   │ w1   │ w2   │ w3   │         cp.async → shared memory → ldmatrix → mma.sync
//     rows   ├──────┼──────┼──────┼──────┤
//            │ w4   │ w5   │ w6   │ w7   │ 64      steps:  x·W, x·W, …, x·W, then s·h·E
//            └──────┴──────┴──────┴──────┘
//                     TileN / 4
//
// The pair is nothing but more steps: their operands are s·h (M, ranks) in place of x and E in
// place of W, on the same accumulators. Where dropout masks what the pair adds, its steps come
// first, the accumulators are masked, and the base product goes on upon them.
//
// Shared memory of a step: x as (128, kDepth), W as (TileN, kDepth) or, where it lies along N,
// (kDepth, TileN). Rows are cut into chunks of 16 bytes; chunk c of row r lies at place
// c ^ swizzle(r), so that the eight rows that ldmatrix reads at once, and the chunks that are
// stored at once, lie in different banks.
//
// A block a multiprocessor makes tile after tile, and the steps flow on from one to the next: its
// first steps are on their way to shared memory while the sums of the last are stored, from
// registers.
//
// The shrink rides, where the last round of tiles leaves multiprocessors idle: the first blocks
// make h, raise a flag for each 128 rows, and end. The last blocks of tiles, which have a tile less
// to make, start in their place. Tiles have no need of h before the end of their base product.
// Blocks start in their order and the first wait for nobody, so that a flag that is waited for is
// always on its way.

namespace graft::cuda::ampere {

/// How W lies, and how it gets to shared memory.
enum class Way {
  kAlongK,  ///< Copies; rows of K.
  kAlongN,  ///< Copies; rows of N.
  kAny,     ///< x or W element by element, from any type and strides; to rows of K.
};

inline constexpr int kTileRows = 128;
inline constexpr int kTileThreads = 256;
/// Blocks of rows that are worked on side by side: their x and W stay in L2.
inline constexpr unsigned kRasterRows = 8;

struct TileArgs {
  Operand x, w;  ///< (M, K), (N, K)
  std::int64_t m = 0, n = 0, k = 0;
  unsigned tiles = 0;            ///< Of y, times the parts that K is cut into.
  const void* scaled = nullptr;  ///< s·h (M, ranks) of the multiply type.
  const void* expand = nullptr;  ///< E as `prepare` packs it.
  std::int64_t expand_stride = 0;
  int ranks = 0;     ///< 0: no pair.
  DropoutArgs mask;  ///< On what the pair adds.
  const void* bias = nullptr;
  std::int64_t bias_stride = 0;
  DType bias_dtype = DType::kFloat32;
  void* y = nullptr;
  std::int64_t y_stride = 0;
  bool y_float = false;    ///< float32, or the multiply type.
  bool y_vectors = false;  ///< Its rows are aligned to 16 bytes.
  bool accumulate = false;
  /// Parts that K is cut into, where there are too few tiles for the device: part i of y's sum goes
  /// to y + i · split_stride, and something else adds them up.
  int splits = 1;
  std::int64_t split_depth = 0;  ///< K of a part, whole steps; the last has the rest.
  std::int64_t split_stride = 0;
  /// Blocks that make h before their tiles, and what they make; 0: h is there.
  unsigned shrink_blocks = 0;
  ShrinkArgs shrink;
  unsigned* ready = nullptr;  ///< For each kTileRows of h: units of it that are there.
};

template <int TileN, int Depth, int Stages>
struct TileShape {
  static constexpr int kN = TileN, kDepth = Depth, kStages = Stages;
  static constexpr int kBytesX = kTileRows * Depth * 2, kBytesW = TileN * Depth * 2;
  static constexpr int kStageBytes = kBytesX + kBytesW;
  static constexpr int kSharedBytes = Stages * kStageBytes;
  static constexpr int kWarpN = TileN / 4;
  static constexpr int kBlocksN = kWarpN / 8;  ///< Of 8 columns, a warp's.
  // Half a warp's sums, float32, on their way to y: rows a little longer, so that what is stored at
  // once lies in different banks.
  static constexpr int kOutStride = kWarpN * 4 + 32;
  static constexpr int kOutBytes = 32 * kOutStride;
  static_assert(8 * kOutBytes <= kSharedBytes);
};

/// Where chunk c of row r of a matrix with rows of Depth lies.
template <int Depth>
__device__ __forceinline__ int swizzled(int r, int c) {
  return r * Depth * 2 + ((c ^ (Depth == 64 ? r & 7 : (r >> 1) & 3)) * 16);
}

/// threadIdx.x, of which nothing is found ahead of the loop over K: it has no registers for it.
__device__ __forceinline__ int thread_here() {
  int thread = static_cast<int>(threadIdx.x);
  asm volatile("" : "+r"(thread));
  return thread;
}

/// Where a thread's chunks of an operand come from, step after step. Chunks that do not exist are
/// filled with zeros, so that a step past the last one is a step like any other. Chunks are whole:
/// rows of what is copied are eights of elements.
///
/// Along k: chunk c of rows r, r + kPass, … of the tile.
template <int kRows, int kDepth>
struct FeedAlongK {
  static constexpr int kChunks = kDepth / 8, kPass = kTileThreads / kChunks;
  static constexpr int kCopies = kRows / kPass;
  static constexpr int kPassBytes = kPass * kDepth * 2;  // from a copy to the next, in a stage
  static_assert(kPass % 8 == 0);                         // the swizzle stays the same

  const char* at = nullptr;     // the first chunk of the next step
  std::int64_t pass_bytes = 0;  // from a copy to the next, in memory: the same for all threads
  int rows = 0, left = 0;       // that exist: rows from the first on, and k from the chunk on

  __device__ __forceinline__ static int row() { return thread_here() / kChunks; }
  __device__ __forceinline__ static int chunk() { return thread_here() % kChunks; }
  /// Where in a stage's part the first chunk goes.
  __device__ __forceinline__ static std::uint32_t place() {
    return swizzled<kDepth>(row(), chunk());
  }
  /// Rows [first, first + kRows) of `count`, from k = 0 to `depth`; `stride` between rows.
  __device__ __forceinline__ void start(const void* data, std::int64_t stride, std::int64_t first,
                                        std::int64_t count, int depth) {
    const int r = row(), c = chunk();
    at = static_cast<const char*>(data) + ((first + r) * stride + 8 * c) * 2;
    pass_bytes = kPass * stride * 2;
    left = depth - 8 * c;
    rows = left > 0 ? static_cast<int>(min(count - first, std::int64_t{kRows})) - r : 0;
  }
  __device__ __forceinline__ void copy(int c, std::uint32_t to) const {
    copy_async(to + c * kPassBytes, at + c * pass_bytes, rows > c * kPass);
  }
  /// On to the next step's.
  __device__ __forceinline__ void advance() {
    left -= kDepth;
    if (left <= 0) rows = 0;
    at += kDepth * 2;
  }
};

/// Along n: rows are k, and a thread has chunks c, c + 8, … of k = r, r + kPass, ….
template <int kRows, int kDepth>
struct FeedAlongN {
  static constexpr int kChunks = 8, kPass = kTileThreads / kChunks;
  static constexpr int kPasses = kDepth / kPass, kPer = kRows / 64;
  static constexpr int kCopies = kPasses * kPer;
  static constexpr int kPassBytes = kPass * kRows * 2;

  const char* at[kPasses];
  std::int64_t step_bytes = 0;
  int cols = 0, left = 0;  // that exist, from this thread's first chunk on

  __device__ __forceinline__ static std::uint32_t place() {
    const int r = thread_here() / kChunks, c = thread_here() % kChunks;
    return r * kRows * 2 + (c ^ (r & 7)) * 16;
  }
  /// Columns [first, first + kRows) of `count`, from k = 0 to `depth`; `stride` between k.
  __device__ __forceinline__ void start(const void* data, std::int64_t stride, std::int64_t first,
                                        std::int64_t count, int depth) {
    const int r = thread_here() / kChunks, c = thread_here() % kChunks;
#pragma unroll
    for (int p = 0; p < kPasses; ++p) {
      at[p] = static_cast<const char*>(data) + ((r + p * kPass) * stride + first + 8 * c) * 2;
    }
    step_bytes = kDepth * stride * 2;
    cols = static_cast<int>(min(count - first, std::int64_t{kRows})) - 8 * c;
    left = depth - r;
  }
  __device__ __forceinline__ void copy(int i, std::uint32_t to) const {
    const int p = i / kPer, c = i % kPer;
    const bool exists = (left > p * kPass ? cols : 0) > 64 * c;
    copy_async(to + p * kPassBytes + c * 128, at[p] + c * 128, exists);
  }
  __device__ __forceinline__ void advance() {
    left -= kDepth;
#pragma unroll
    for (int p = 0; p < kPasses; ++p) at[p] += step_bytes;
  }
};

/// Chunks of an operand on their way through registers, for what copies can't take.
template <class T, int Rows, int Depth>
struct Carried {
  static constexpr int kChunks = Depth / 8, kPasses = Rows * kChunks / kTileThreads;
  uint4 chunks[kPasses];

  /// Lanes follow each other in memory: along k, or along the rows' dimension.
  __device__ __forceinline__ static void place(const Operand& from, int pass, int& r, int& c) {
    const int i = pass * kTileThreads + static_cast<int>(threadIdx.x);
    const bool along_k = from.inner == 1;
    r = along_k ? i / kChunks : i % Rows;
    c = along_k ? i % kChunks : i / Rows;
  }
  __device__ __forceinline__ void fetch(const Operand& from, std::int64_t row0, std::int64_t rows,
                                        std::int64_t k0, std::int64_t depth) {
#pragma unroll
    for (int p = 0; p < kPasses; ++p) {
      int r, c;
      place(from, p, r, c);
      const bool exists = row0 + r < rows && k0 + 8 * c < depth;
      chunks[p] = exists ? gather8<T>(from, row0 + r, k0 + 8 * c, depth) : uint4{0, 0, 0, 0};
    }
  }
  __device__ __forceinline__ void store(const Operand& from, unsigned char* to) const {
#pragma unroll
    for (int p = 0; p < kPasses; ++p) {
      int r, c;
      place(from, p, r, c);
      *reinterpret_cast<uint4*>(to + swizzled<Depth>(r, c)) = chunks[p];
    }
  }
};

/// What a warp multiplies at once: 64 × 16 of x by 16 × kWarpN of W.
template <class Shape>
struct Fragments {
  std::uint32_t x[4][4];
  std::uint32_t w[Shape::kBlocksN][2];
};

template <class T, class Shape, Way kWay>
struct TileProduct {
  static constexpr int kDepth = Shape::kDepth, kStages = Shape::kStages, kSixteens = kDepth / 16;
  static constexpr bool kWAlongN = kWay == Way::kAlongN;
  using Sums = float[4][Shape::kBlocksN][4];
  using FeedX = FeedAlongK<kTileRows, kDepth>;
  using FeedW =
      std::conditional_t<kWAlongN, FeedAlongN<Shape::kN, kDepth>, FeedAlongK<Shape::kN, kDepth>>;
  static constexpr int kCopies = FeedX::kCopies + FeedW::kCopies;
  static_assert(kStages == 3);

  const TileArgs& a;
  unsigned char* shared;
  // Where this lane's ldmatrix rows start in the first stage, for each swizzle that a step needs:
  // of x for each sixteenth of its k; of W too, or along n for each two eights of columns. And
  // where its copies go there.
  std::uint32_t lane_x[kSixteens], lane_w[kWAlongN ? Shape::kBlocksN / 2 : kSixteens], to_x, to_w;

  // Tiles are counted in 32 bits, as a launch's blocks are; parts of K count too.
  unsigned tile = 0, fed = 0;  // the one that is summed, and the one whose steps are copied
  bool flows;                  // whether copies go on from a tile to the next

  // The run of steps that is fed, in which the base's are followed by the pair's. What copies come
  // from now ends before `step` of the run, `until` steps ahead.
  FeedX x;
  FeedW w;
  int until = 0, step = 0, pair_from = 0, steps = 0;
  bool feeds_base = false;
  // The stages, in bytes, that are multiplied, multiplied next, and copied to.
  int now = 0, next = 0, free = 0;
  Fragments<Shape> f[2];
  [[no_unique_address]] Carried<T, kTileRows, kDepth> carried_x;
  [[no_unique_address]] Carried<T, Shape::kN, kDepth> carried_w;

  __device__ __forceinline__ TileProduct(const TileArgs& args, unsigned char* memory)
      : a(args), shared(memory) {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const int warp_row = warp / 4 * 64, warp_col = warp % 4 * Shape::kWarpN;
    const std::uint32_t base = shared_address(memory);
    // The swizzle is an exclusive or of address bits that nothing else sets: stages and rows are
    // whole 128 bytes.
    // x: matrices (rows 0-7, k 0-7), (rows 8-15, k 0-7), (rows 0-7, k 8-15), (rows 8-15, k 8-15)
    const std::uint32_t first_x = base + swizzled<kDepth>(warp_row + lane % 16, lane / 16);
#pragma unroll
    for (int i = 0; i < kSixteens; ++i) lane_x[i] = first_x ^ (i * 32);
    std::uint32_t first_w = base + Shape::kBytesX;
    if constexpr (kWAlongN) {
      // (k 0-7, n 0-7), (k 8-15, n 0-7), (k 0-7, n 8-15), (k 8-15, n 8-15), transposed on the way
      const int rw = lane % 16;
      first_w += rw * Shape::kN * 2 + ((warp_col / 8 + lane / 16) ^ (rw & 7)) * 16;
    } else {
      // (n 0-7, k 0-7), (n 0-7, k 8-15), (n 8-15, k 0-7), (n 8-15, k 8-15)
      first_w += swizzled<kDepth>(warp_col + lane % 8 + lane / 16 * 8, lane / 8 % 2);
    }
#pragma unroll
    for (int i = 0; i < static_cast<int>(std::size(lane_w)); ++i) lane_w[i] = first_w ^ (i * 32);
    to_x = base + FeedX::place(), to_w = base + Shape::kBytesX + FeedW::place();
    // What has use for shared memory at a tile's end waits for its next tile; no steps don't flow.
    flows = stores_directly() && !(a.ranks > 0 && a.mask.any()) && (a.k > 0 || a.ranks > 0);
  }

  /// Where a tile is: rows, columns, and the part of K that it sums over. Found again whenever it
  /// is asked for: the loop over K has no registers for it.
  struct Place {
    std::int64_t row0, col0;
    int split;
  };
  __device__ __forceinline__ Place place_of(unsigned of) const {
    asm volatile("" : "+r"(of));  // so that it is not found ahead of a loop
    const unsigned blocks_m = static_cast<unsigned>((a.m + kTileRows - 1) / kTileRows);
    const unsigned blocks_n = static_cast<unsigned>((a.n + Shape::kN - 1) / Shape::kN);
    const unsigned whole = of / a.splits;
    const unsigned group = whole / (kRasterRows * blocks_n);
    const unsigned in_group = whole - group * (kRasterRows * blocks_n);
    const unsigned rows = min(blocks_m - group * kRasterRows, kRasterRows);
    const unsigned col = in_group / rows;
    return {std::int64_t{group * kRasterRows + in_group - col * rows} * kTileRows,
            std::int64_t{col} * Shape::kN, static_cast<int>(of - whole * a.splits)};
  }
  __device__ __forceinline__ bool last(int split) const { return split + 1 == a.splits; }
  /// K of a part.
  __device__ __forceinline__ std::int64_t depth(int split) const {
    return last(split) ? a.k - split * a.split_depth : a.split_depth;
  }
  __device__ __forceinline__ int base_steps(int split) const {
    return static_cast<int>((depth(split) + kDepth - 1) / kDepth);
  }
  /// The last part goes on over the pair.
  __device__ __forceinline__ int pair_steps(int split) const {
    return last(split) ? (a.ranks + kDepth - 1) / kDepth : 0;
  }
  __device__ __forceinline__ bool masked(int split) const {
    return a.mask.any() && pair_steps(split) > 0;
  }
  __device__ __forceinline__ bool masked() const {
    return a.mask.any() && masked(static_cast<int>(tile % a.splits));
  }

  /// Fragment `j` of sixteenth `i` of the k of a stage into registers, in the order in which they
  /// are multiplied: W's first, x's first, the rest of W's, the rest of x's.
  static constexpr int kLoadsW = Shape::kBlocksN / 2, kLoads = 4 + kLoadsW;
  __device__ __forceinline__ void load(int stage, int i, int j, Fragments<Shape>& f) const {
    if (j == 1 || j > kLoadsW) {
      load_x(lane_x[i] + stage, j == 1 ? 0 : j - kLoadsW, f);
    } else {
      const int n = j == 0 ? 0 : j - 1;
      load_w(kWAlongN ? lane_w[n] + stage + i * 16 * Shape::kN * 2 : lane_w[i] + stage, n, f);
    }
  }
  __device__ __forceinline__ static void load_x(std::uint32_t from, int r, Fragments<Shape>& f) {
    ldmatrix(from + r * 16 * kDepth * 2, f.x[r][0], f.x[r][1], f.x[r][2], f.x[r][3]);
  }
  __device__ __forceinline__ static void load_w(std::uint32_t from, int n, Fragments<Shape>& f) {
    auto& w = f.w;
    if constexpr (kWAlongN) {
      ldmatrix_trans(from, w[2 * n][0], w[2 * n][1], w[2 * n + 1][0], w[2 * n + 1][1]);
    } else {
      ldmatrix(from + n * 16 * kDepth * 2, w[2 * n][0], w[2 * n][1], w[2 * n + 1][0],
               w[2 * n + 1][1]);
    }
  }
  /// All of a sixteenth that is not known when compiling.
  __device__ __forceinline__ void load(int stage, int i, Fragments<Shape>& f) const {
#pragma unroll
    for (int r = 0; r < 4; ++r) load_x((lane_x[0] ^ (i * 32)) + stage, r, f);
#pragma unroll
    for (int n = 0; n < kLoadsW; ++n) {
      load_w((kWAlongN ? lane_w[n] + i * 16 * Shape::kN * 2 : lane_w[0] ^ (i * 32)) + stage, n, f);
    }
  }

  /// The run of steps of a tile. Round 0 is the pair's alone, where that is masked; round 1 is the
  /// base's, going on over the pair's steps unless they have been.
  __device__ __forceinline__ void feed(unsigned of, int round) {
    const int split = static_cast<int>(of % a.splits);
    fed = of, step = until = 0;
    pair_from = round == 0 ? 0 : base_steps(split);
    steps = pair_from + (round == 0 || !masked(split) ? pair_steps(split) : 0);
  }
  /// From a block's tile to its next.
  __device__ __forceinline__ unsigned stride() const { return gridDim.x - a.shrink_blocks; }
  /// Until the rows of h that a tile needs are there.
  __device__ __forceinline__ void wait_for_h(std::int64_t row0) const {
    const unsigned units = a.m - row0 > kShrinkUnitRows ? kTileRows / kShrinkUnitRows : 1;
    const unsigned* ready = a.ready + row0 / kTileRows;
    while (load_acquire(ready) < units) {
    }
  }
  /// Where copies come from when those of a source have all been sent off: from the base's
  /// operands, the pair's, the next tile's, or nowhere.
  __device__ __forceinline__ void turn() {
    if (step == steps && flows && fed + stride() < a.tiles) feed(fed + stride(), 1);
    if (step == steps) {
      feeds_base = false;
      until = 1 << 30;
      return;
    }
    const Place at = place_of(fed);
    const bool pair = step == pair_from;
    if (pair && a.shrink_blocks > 0) wait_for_h(at.row0);
    const std::int64_t k = pair ? 0 : at.split * a.split_depth;
    const int count = pair ? a.ranks : static_cast<int>(depth(at.split));
    const T* from_x = static_cast<const T*>(pair ? a.scaled : a.x.data) + k;
    const T* from_w = static_cast<const T*>(pair ? a.expand : a.w.data);
    const std::int64_t stride_w = pair ? a.expand_stride : kWAlongN ? a.w.inner : a.w.outer;
    x.start(from_x, pair ? a.ranks : a.x.outer, at.row0, a.m, count);
    w.start(from_w + (kWAlongN ? k * stride_w : k), stride_w, at.col0, a.n, count);
    feeds_base = !pair;
    until = (pair ? steps : pair_from) - step;
    step += until;
  }
  /// Before the copies of a step.
  __device__ __forceinline__ void begin_step() {
    if (until == 0) turn();
    if constexpr (kWay == Way::kAny) {
      if (feeds_base && !(a.x.copies && a.w.copies)) {
        const Place at = place_of(fed);
        const std::int64_t k0 = at.split * a.split_depth + std::int64_t{pair_from - until} * kDepth;
        if (!a.x.copies) carried_x.fetch(a.x, at.row0, a.m, k0, a.k);
        if (!a.w.copies) carried_w.fetch(a.w, at.col0, a.n, k0, a.k);
      }
    }
    --until;
  }
  /// Copy `c` of a step, which there are kCopies of.
  __device__ __forceinline__ void copy(int c) {
    const bool elements = kWay == Way::kAny && feeds_base;
    if (c < FeedX::kCopies) {
      if (!elements || a.x.copies) x.copy(c, to_x + free);
    } else {
      if (!elements || a.w.copies) w.copy(c - FeedX::kCopies, to_w + free);
    }
  }
  __device__ __forceinline__ void end_step() {
    if constexpr (kWay == Way::kAny) {
      if (feeds_base && !a.x.copies) carried_x.store(a.x, shared + free);
      if (feeds_base && !a.w.copies) carried_w.store(a.w, shared + free + Shape::kBytesX);
    }
    x.advance();
    w.advance();
    commit_copies();
  }
  __device__ __forceinline__ void copy_step() {
    begin_step();
#pragma unroll
    for (int c = 0; c < kCopies; ++c) copy(c);
    end_step();
  }
  __device__ __forceinline__ void next_stage() {
    const int was = now;
    now = next, next = free, free = was;
  }
  /// Until the oldest step that is on its way has landed for all warps.
  __device__ __forceinline__ static void landed() {
    wait_copies<kStages - 2>();
    __syncthreads();
  }

  /// Starts a tile's run: the copies of its first steps, into shared memory that nobody uses.
  __device__ __forceinline__ void start(int round) {
    feed(tile, round);
    free = 0;
#pragma unroll 1
    for (int s = 0; s < kStages - 1; ++s) {
      copy_step();
      free += Shape::kStageBytes;
    }
    landed();
    now = 0, next = Shape::kStageBytes;
    load(now, 0, f[0]);
  }

  /// The run of the tile, which has been started or flowed into, added to `sums`. The matrix units
  /// are to have no gap: between their instructions of one sixteenth of a step's k come, evenly,
  /// the loads of the next sixteenth, then a share of the copies of the step kStages - 1 ahead. The
  /// last sixteenth has no copies: it begins with the step's one barrier, after which the next
  /// stage has landed for all warps and this one is free.
  __device__ __forceinline__ void finish(Sums& sums, int round) {
    constexpr int kBlocks = Shape::kBlocksN, kCount = 4 * kBlocks;
    constexpr int kEvery = kCount >= 2 * kLoads + 4 ? 2 : 1, kFirst = kEvery * kLoads;
    constexpr int kShare = (kCopies + kSixteens - 2) / (kSixteens - 1);
    constexpr int kGap = (kCount - kFirst) / kShare;
    static_assert(kGap >= 1);
    const int split = static_cast<int>(tile % a.splits);
    const int of_base = round == 0 ? 0 : base_steps(split);
    const int of_pair = round == 0 || !masked(split) ? pair_steps(split) : 0;
    // Of the last step only a sixteenth may be there: a pair of rank 16.
    const int k = static_cast<int>(of_pair > 0 ? a.ranks : depth(split)) % kDepth;
    const int sixteens = of_base + of_pair > 0 ? (k + 15) / 16 : 0;
#pragma unroll 1
    for (int whole = of_base + of_pair - (sixteens > 0 ? 1 : 0); whole > 0; --whole) {
      begin_step();
#pragma unroll
      for (int i = 0; i < kSixteens; ++i) {
        const bool ends = i == kSixteens - 1;
        if (ends) {
          end_step();
          landed();
        }
#pragma unroll
        for (int m = 0; m < kCount; ++m) {
          const int r = m / kBlocks, n = m % kBlocks;
          if (m < kFirst && m % kEvery == 0) {
            load(ends ? next : now, (i + 1) % kSixteens, m / kEvery, f[(i + 1) % 2]);
          }
          if (m >= kFirst && (m - kFirst) % kGap == 0 && (m - kFirst) / kGap < kShare) {
            const int c = i * kShare + (m - kFirst) / kGap;
            if (c < kCopies) copy(c);
          }
          mma<T>(sums[r][n], f[i % 2].x[r], f[i % 2].w[n]);
        }
      }
      next_stage();
    }
    if (sixteens > 0) {
      copy_step();
#pragma unroll 1
      for (int i = 0; i < sixteens; ++i) {
        if (i > 0) load(now, i, f[0]);
#pragma unroll
        for (int r = 0; r < 4; ++r) {
#pragma unroll
          for (int n = 0; n < kBlocks; ++n) mma<T>(sums[r][n], f[0].x[r], f[0].w[n]);
        }
      }
      landed();
      next_stage();
      load(now, 0, f[0]);
    }
    if (!flows) {
      wait_copies<0>();
      __syncthreads();
    }
  }

  /// Masks and scales what the pair has added. Bit 8g + e of a row in shared memory: whether column
  /// 8g + e of the tile is kept.
  __device__ __forceinline__ void drop(Sums& sums) const {
    constexpr int kGroups = Shape::kN / 8;
    const Place at = place_of(tile);
    const Masks masks = a.mask.masks();
#pragma unroll 1
    for (int i = thread_here(); i < kTileRows * kGroups; i += kTileThreads) {
      const std::int64_t row = at.row0 + i / kGroups, col = at.col0 + i % kGroups * 8;
      unsigned kept = 0;
      if (row < a.m && col < a.n) {
        const std::uint64_t first = static_cast<std::uint64_t>(row * a.n + col);
        const int shift = static_cast<int>(first % 8);
        const PhiloxWords low = masks.words(first / 8);
#pragma unroll
        for (int e = 0; e < 8; ++e) kept |= (low.field(e) >= masks.threshold ? 1u : 0u) << e;
        if (shift != 0) {
          const PhiloxWords high = masks.words(first / 8 + 1);
#pragma unroll
          for (int e = 0; e < 8; ++e) {
            kept |= (high.field(e) >= masks.threshold ? 1u : 0u) << (8 + e);
          }
          kept >>= shift;
        }
      }
      shared[i] = static_cast<unsigned char>(kept);
    }
    __syncthreads();
    const int thread = thread_here(), warp = thread / 32, lane = thread % 32;
    const int g = lane / 4, q = lane % 4;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const unsigned char* row =
            shared + (warp / 4 * 64 + 16 * r + 8 * half + g) * kGroups + warp % 4 * Shape::kBlocksN;
#pragma unroll
        for (int n = 0; n < Shape::kBlocksN; ++n) {
          const unsigned kept = row[n] >> (2 * q);
          float* pair = sums[r][n] + 2 * half;
          pair[0] = (kept & 1) != 0 ? pair[0] * masks.scale : 0.0f;
          pair[1] = (kept & 2) != 0 ? pair[1] * masks.scale : 0.0f;
        }
      }
    }
    __syncthreads();
  }

  /// Adds bias to the sums of a tile, by way of `staged`, a float a column.
  __device__ __forceinline__ void add_bias(float* staged, Sums& sums) const {
    if (a.bias == nullptr) return;
    const int thread = thread_here(), warp = thread / 32, lane = thread % 32;
    if (thread < Shape::kN) {
      const std::int64_t col = min(place_of(tile).col0 + thread, a.n - 1);
      staged[thread] = load_as_float(a.bias, a.bias_dtype, col * a.bias_stride);
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < Shape::kBlocksN; ++n) {
      const float2 bias = *reinterpret_cast<const float2*>(staged + warp % 4 * Shape::kWarpN +
                                                           8 * n + lane % 4 * 2);
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        sums[r][n][0] += bias.x, sums[r][n][1] += bias.y;
        sums[r][n][2] += bias.x, sums[r][n][3] += bias.y;
      }
    }
  }

  /// Whether y can be stored from registers: all of it in vectors, and nothing is read of it.
  __device__ __forceinline__ bool stores_directly() const {
    return a.y_vectors && !a.accumulate && a.n % 8 == 0;
  }

  /// Word j of lane q of each quad becomes word q of lane j.
  __device__ __forceinline__ static void transpose_quad(std::uint32_t (&v)[4]) {
    const bool odd = (threadIdx.x & 1) != 0, high = (threadIdx.x & 2) != 0;
    const auto swap = [](std::uint32_t& low, std::uint32_t& up, bool upper, int mask) {
      const std::uint32_t got = __shfl_xor_sync(0xFFFFFFFFu, upper ? low : up, mask);
      (upper ? low : up) = got;
    };
    swap(v[0], v[1], odd, 1), swap(v[2], v[3], odd, 1);
    swap(v[0], v[2], high, 2), swap(v[1], v[3], high, 2);
  }

  /// y of a tile, straight from registers. Lane 4g + q has columns 2q and 2q + 1 of each eight
  /// in rows g and g + 8 of each sixteen. Of halves, four lanes exchange what they have of four
  /// eights, so that each stores one of 16 bytes; of floats, their pairs fill 32 bytes as they are.
  __device__ __forceinline__ void store_directly(const Sums& sums) const {
    const Place at = place_of(tile);
    const int thread = thread_here(), warp = thread / 32, lane = thread % 32;
    const int g = lane / 4, q = lane % 4;
    const std::int64_t row = at.row0 + warp / 4 * 64 + g;
    const std::int64_t col = at.col0 + warp % 4 * Shape::kWarpN;
    const int rows =
        static_cast<int>(min(a.m - row, std::int64_t{64}));  // from this lane's first on
    const int cols = static_cast<int>(min(a.n - col, std::int64_t{Shape::kWarpN}));
    if (a.y_float) {
      float* y =
          static_cast<float*>(a.y) + at.split * a.split_stride + row * a.y_stride + col + 2 * q;
#pragma unroll
      for (int half = 0; half < 8; ++half) {
        if (8 * half >= rows) break;
#pragma unroll
        for (int b = 0; b < Shape::kBlocksN; ++b) {
          const float* pair = sums[half / 2][b] + half % 2 * 2;
          if (8 * b < cols) *reinterpret_cast<float2*>(y + 8 * b) = make_float2(pair[0], pair[1]);
        }
        y += 8 * a.y_stride;
      }
      return;
    }
    T* y = static_cast<T*>(a.y) + row * a.y_stride + col + 8 * q;
#pragma unroll
    for (int half = 0; half < 8; ++half) {
#pragma unroll
      for (int b = 0; b < Shape::kBlocksN; b += 4) {
        std::uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* pair = sums[half / 2][b + i] + half % 2 * 2;
          words[i] = pack2<T>(pair[0], pair[1]);
        }
        transpose_quad(words);
        if (8 * half < rows && 8 * (b + q) < cols) {
          *reinterpret_cast<uint4*>(y + 8 * b) = {words[0], words[1], words[2], words[3]};
        }
      }
      y += 8 * a.y_stride;
    }
  }

  /// y += and y of any alignment, by way of shared memory, half of a warp's rows at a time. Short
  /// code: it runs once a tile, and what isn't in the instruction cache costs more than what it
  /// does. Ends with a barrier.
  __device__ __forceinline__ void store_staged(const Sums& sums) const {
    constexpr int kChunks = Shape::kBlocksN, kPass = 32 / kChunks;
    const int thread = thread_here(), warp = thread / 32, lane = thread % 32;
    const int g = lane / 4, q = lane % 4;
    unsigned char* mine = shared + warp * Shape::kOutBytes;
    const Place at = place_of(tile);
    const std::int64_t col = at.col0 + warp % 4 * Shape::kWarpN + lane % kChunks * 8;
    const int cols = a.n - col >= 8 ? 8 : static_cast<int>(a.n - col);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
#pragma unroll
        for (int n = 0; n < Shape::kBlocksN; ++n) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const float* pair = sums[2 * half + r][n] + 2 * e;
            *reinterpret_cast<float2*>(mine + (16 * r + 8 * e + g) * Shape::kOutStride + 32 * n +
                                       8 * q) = make_float2(pair[0], pair[1]);
          }
        }
      }
      __syncwarp();
#pragma unroll 1
      for (int r = lane / kChunks; r < 32; r += kPass) {
        const std::int64_t row = at.row0 + warp / 4 * 64 + 32 * half + r;
        if (row >= a.m || cols <= 0) break;
        const float4* from =
            reinterpret_cast<const float4*>(mine + r * Shape::kOutStride + lane % kChunks * 32);
        const float4 low = from[0], high = from[1];
        const float value[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
        if (a.y_float) {
          put(static_cast<float*>(a.y) + at.split * a.split_stride + row * a.y_stride + col, value,
              cols);
        } else {
          put(static_cast<T*>(a.y) + row * a.y_stride + col, value, cols);
        }
      }
      __syncwarp();
    }
    __syncthreads();
  }

  /// y = or y += of up to eight elements of a row.
  template <class Y>
  __device__ __forceinline__ void put(Y* y, const float (&value)[8], int cols) const {
    constexpr int kVectors = static_cast<int>(sizeof(Y)) / 2;
    union {
      uint4 bits[kVectors];
      Y values[8];
    } eight;
    if (cols == 8 && a.y_vectors) {
      if (a.accumulate) {
#pragma unroll
        for (int v = 0; v < kVectors; ++v) eight.bits[v] = reinterpret_cast<const uint4*>(y)[v];
      }
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        eight.values[e] =
            from_float<Y>(a.accumulate ? to_float(eight.values[e]) + value[e] : value[e]);
      }
#pragma unroll
      for (int v = 0; v < kVectors; ++v) reinterpret_cast<uint4*>(y)[v] = eight.bits[v];
      return;
    }
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      if (e < cols) y[e] = from_float<Y>(a.accumulate ? to_float(y[e]) + value[e] : value[e]);
    }
  }
};

/// h of the units of a block. No call, and no way from here to the tiles: with either, ptxas keeps
/// the tiles' sums in other registers after each instruction than before, which takes 5 % longer.
template <class T>
__device__ __forceinline__ void make_h(const TileArgs& a, unsigned char* shared) {
#pragma unroll 1
  for (std::int64_t row0 = std::int64_t{blockIdx.x} * kShrinkUnitRows; row0 < a.m;
       row0 += std::int64_t{a.shrink_blocks} * kShrinkUnitRows) {
    shrink_unit<T, true>(a.shrink, row0, reinterpret_cast<float*>(shared));
    if (threadIdx.x == 0) {  // all of the block have stored theirs and met
      __threadfence();
      atomicAdd(a.ready + row0 / kTileRows, 1u);
    }
  }
}

template <class T, class Shape, Way kWay>
__global__ void __launch_bounds__(kTileThreads, 1) tiles(const __grid_constant__ TileArgs a) {
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ float bias[Shape::kN];
  wait_for_kernel_before();
  if (blockIdx.x < a.shrink_blocks) {
    make_h<T>(a, shared);
    return;
  }
  TileProduct<T, Shape, kWay> product(a, shared);
  bool started = false;
#pragma unroll 1
  for (product.tile = blockIdx.x - a.shrink_blocks; product.tile < a.tiles;
       product.tile += product.stride()) {
    typename TileProduct<T, Shape, kWay>::Sums sums = {};
    // One run of steps; or, to mask what the pair adds, a run of its own first.
#pragma unroll 1
    for (int round = product.masked() ? 0 : 1; round < 2; ++round) {
      if (!started) product.start(round);
      started = product.flows;
      if (round == 1) product.add_bias(bias, sums);
      product.finish(sums, round);
      if (round == 0) product.drop(sums);
    }
    if (product.stores_directly()) {
      product.store_directly(sums);
    } else {
      product.store_staged(sums);
    }
  }
  wait_copies<0>();
}

}  // namespace graft::cuda::ampere
