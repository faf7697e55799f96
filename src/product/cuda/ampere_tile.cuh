#pragma once

#include "backend/cuda/mma.cuh"
#include "backend/cuda/philox.cuh"
#include "product/cuda/ampere_operand.cuh"
#include "product/cuda/ampere_shrink.cuh"

// y = [ x | s·h ] · [ W ; E ] + bias on sm_80 and later: a tile of y a block.
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
// Work is dealt out by ticket, in the order in which blocks start. The first tickets are the
// shrink's (where it rides: there are fewer tiles than the last round of blocks has room for); they
// wait for nothing, so that tiles, which wait for the h of their rows before the pair's steps, wait
// only for blocks that are running.

namespace graft::cuda::ampere {

/// How W lies, and how it gets to shared memory.
enum class Way {
  kAlongK,  ///< Copies; rows of K.
  kAlongN,  ///< Copies; rows of N.
  kAny,     ///< x or W element by element, from any type and strides; to rows of K.
};

inline constexpr int kTileRows = 128;
inline constexpr int kTileThreads = 256;

struct TileArgs {
  Operand x, w;  ///< (M, K), (N, K)
  std::int64_t m = 0, n = 0, k = 0;
  const void* scaled = nullptr;  ///< s·h (M, ranks) of the multiply type.
  const void* expand = nullptr;  ///< E as `prepare` packs it.
  std::int64_t expand_stride = 0;
  int ranks = 0;     ///< 0: no pair.
  DropoutArgs mask;  ///< On what the pair adds.
  const void* bias = nullptr;
  std::int64_t bias_stride = 0;
  DType bias_type = DType::kFloat32;
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
  unsigned* counters = nullptr;  ///< Ticket, then units of h done by block of rows; null: no ride.
  unsigned shrink_blocks = 0;
  ShrinkArgs shrink;
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
  static_assert(8 * kOutBytes <= kSharedBytes && int(kShrinkSharedBytes) <= kSharedBytes);
};

/// Where chunk c of row r of a matrix with rows of Depth lies.
template <int Depth>
__device__ __forceinline__ int swizzled(int r, int c) {
  return r * Depth * 2 + ((c ^ (Depth == 64 ? r & 7 : (r >> 1) & 3)) * 16);
}

/// Where a thread's chunks of an operand come from, step after step. Along k it has chunk c of rows
/// r, r + kPass, … of the tile; along n, chunk c of k = r, r + kPass, …. Chunks that do not exist
/// are filled with zeros, so that a step past the last one is a step like any other. Chunks are
/// whole: rows of what is copied are eights of elements.
template <class T, int kRows, int kDepth, bool kAlongN>
struct Feed {
  static constexpr int kChunks = (kAlongN ? kRows : kDepth) / 8, kPass = kTileThreads / kChunks;
  static constexpr int kPasses = (kAlongN ? kDepth : kRows) / kPass;
  static constexpr int kPassBytes = kPass * kChunks * 16;  // from a pass to the next, in a stage
  static_assert(kPass % 8 == 0);                           // the swizzle stays the same

  const char* at = nullptr;     // the first chunk of the next step
  std::int64_t pass_bytes = 0;  // from a pass to the next, in memory
  std::int64_t step_bytes = 0;  // from a step to the next
  unsigned exists = 0;          // bit p, whether pass p's chunk does
  int left = 0;                 // k from pass 0's chunk on; along n, only if the columns exist

  __device__ __forceinline__ static int row() { return static_cast<int>(threadIdx.x) / kChunks; }
  __device__ __forceinline__ static int chunk() { return static_cast<int>(threadIdx.x) % kChunks; }
  /// Where in a stage's part the first pass's chunk goes.
  __device__ __forceinline__ static std::uint32_t place() {
    return kAlongN ? row() * kRows * 2 + ((chunk() ^ (row() & 7)) * 16)
                   : swizzled<kDepth>(row(), chunk());
  }
  /// Rows [first, first + kRows) of `count`, from k = 0 on; `stride` between rows, or along n
  /// between k.
  __device__ __forceinline__ void start(const void* data, std::int64_t stride, std::int64_t first,
                                        std::int64_t count, std::int64_t depth) {
    const int r = row(), c = chunk();
    pass_bytes = kPass * stride * 2;
    exists = 0;
    if constexpr (kAlongN) {
      at = static_cast<const char*>(data) + (r * stride + first + 8 * c) * 2;
      step_bytes = kDepth * stride * 2;
      left = first + 8 * c < count ? static_cast<int>(depth) - r : 0;
    } else {
      at = static_cast<const char*>(data) + ((first + r) * stride + 8 * c) * 2;
#pragma unroll
      for (int p = 0; p < kPasses; ++p) exists |= (first + r + p * kPass < count ? 1u : 0u) << p;
      left = static_cast<int>(depth) - 8 * c;
    }
    if (!kAlongN && left <= 0) exists = 0;
  }
  __device__ __forceinline__ void copy(int p, std::uint32_t to) const {
    const bool there = kAlongN ? left > p * kPass : (exists >> p & 1) != 0;
    copy_async(to + p * kPassBytes, at + p * pass_bytes, there);
  }
  __device__ __forceinline__ void next_step() {
    at += kAlongN ? step_bytes : kDepth * 2;
    left -= kDepth;
    if (!kAlongN && left <= 0) exists = 0;
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

/// What a warp multiplies at once: 64 × 16 of x, 16 × kWarpN of W.
template <class Shape>
struct Fragments {
  std::uint32_t x[4][4];
  std::uint32_t w[Shape::kBlocksN][2];
};

template <class T, class Shape, Way kWay>
struct TileProduct {
  static constexpr int kDepth = Shape::kDepth;
  static constexpr bool kWAlongN = kWay == Way::kAlongN;

  const TileArgs& a;
  unsigned char* shared;
  std::uint32_t base;       // of `shared`
  std::int64_t row0, col0;  // of the tile
  std::int64_t k_begin;     // of the part of K that it sums over
  int base_steps, pair_steps;
  int split;
  // Where this lane's ldmatrix rows start in a stage, and what its chunk is there.
  std::uint32_t lane_x, chunk_x, lane_w, chunk_w;

  __device__ __forceinline__ TileProduct(const TileArgs& args, unsigned char* memory,
                                         std::int64_t row, std::int64_t col, int part)
      : a(args),
        shared(memory),
        base(shared_address(memory)),
        row0(row),
        col0(col),
        k_begin(part * a.split_depth),
        split(part) {
    // The last part goes on over the pair.
    const bool last = part + 1 == a.splits;
    base_steps = static_cast<int>(((last ? a.k - k_begin : a.split_depth) + kDepth - 1) / kDepth);
    pair_steps = last ? (a.ranks + kDepth - 1) / kDepth : 0;
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const int warp_row = warp / 4 * 64, warp_col = warp % 4 * Shape::kWarpN;
    // x: matrices (rows 0-7, k 0-7), (rows 8-15, k 0-7), (rows 0-7, k 8-15), (rows 8-15, k 8-15)
    const int rx = warp_row + lane % 16;
    lane_x = rx * kDepth * 2;
    chunk_x = swizzled<kDepth>(rx, lane / 16) - lane_x;
    if constexpr (kWAlongN) {
      // (k 0-7, n 0-7), (k 8-15, n 0-7), (k 0-7, n 8-15), (k 8-15, n 8-15), transposed on the way
      const int rw = lane % 16;
      lane_w = Shape::kBytesX + rw * Shape::kN * 2;
      chunk_w = ((warp_col / 8 + lane / 16) ^ (rw & 7)) * 16;
    } else {
      // (n 0-7, k 0-7), (n 0-7, k 8-15), (n 8-15, k 0-7), (n 8-15, k 8-15)
      const int rw = warp_col + lane % 8 + lane / 16 * 8;
      lane_w = Shape::kBytesX + rw * kDepth * 2;
      chunk_w = swizzled<kDepth>(rw, lane / 8 % 2) - rw * kDepth * 2;
    }
  }

  __device__ __forceinline__ bool masked() const { return pair_steps > 0 && a.mask.any(); }
  /// Sixteenth `i` of the k of a stage into registers.
  __device__ __forceinline__ void load(int stage, int i, Fragments<Shape>& f) const {
    const std::uint32_t at = base + stage * Shape::kStageBytes;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      ldmatrix(at + lane_x + r * 16 * kDepth * 2 + (chunk_x ^ (i * 32)), f.x[r][0], f.x[r][1],
               f.x[r][2], f.x[r][3]);
    }
#pragma unroll
    for (int n = 0; n < Shape::kBlocksN; n += 2) {
      if constexpr (kWAlongN) {
        ldmatrix_trans(at + lane_w + i * 16 * Shape::kN * 2 + (chunk_w ^ (n * 16)), f.w[n][0],
                       f.w[n][1], f.w[n + 1][0], f.w[n + 1][1]);
      } else {
        ldmatrix(at + lane_w + n * 8 * kDepth * 2 + (chunk_w ^ (i * 32)), f.w[n][0], f.w[n][1],
                 f.w[n + 1][0], f.w[n + 1][1]);
      }
    }
  }

  using Sums = float[4][Shape::kBlocksN][4];

  __device__ __forceinline__ static void multiply(const Fragments<Shape>& f, Sums& sums) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
      for (int n = 0; n < Shape::kBlocksN; ++n) mma<T>(sums[r][n], f.x[r], f.w[n]);
    }
  }

  /// Until h of the tile's rows is there, if it is made in this launch.
  __device__ __forceinline__ void wait_for_h() const {
    if (a.counters == nullptr) return;
    if (threadIdx.x == 0) {
      const std::int64_t rows = a.m - row0 < kTileRows ? a.m - row0 : kTileRows;
      const unsigned units = static_cast<unsigned>((rows + kShrinkUnitRows - 1) / kShrinkUnitRows);
      while (load_acquire(a.counters + 1 + row0 / kTileRows) < units) __nanosleep(100);
    }
    __syncthreads();
  }

  using FeedX = Feed<T, kTileRows, kDepth, false>;
  using FeedW = Feed<T, Shape::kN, kDepth, kWAlongN>;

  /// K of this part.
  __device__ __forceinline__ std::int64_t depth() const {
    return split + 1 == a.splits ? a.k - k_begin : a.split_depth;
  }
  __device__ __forceinline__ void feed_base(FeedX& x, FeedW& w) const {
    const T* from_x = static_cast<const T*>(a.x.data) + k_begin;
    const T* from_w = static_cast<const T*>(a.w.data) + (kWAlongN ? k_begin * a.w.inner : k_begin);
    x.start(from_x, a.x.outer, row0, a.m, depth());
    w.start(from_w, kWAlongN ? a.w.inner : a.w.outer, col0, a.n, depth());
  }
  __device__ __forceinline__ void feed_pair(FeedX& x, FeedW& w) const {
    wait_for_h();
    x.start(a.scaled, a.ranks, row0, a.m, a.ranks);
    w.start(a.expand, a.expand_stride, col0, a.n, a.ranks);  // eights of n: so W lies along N
  }

  /// Steps of the base (or of the pair, if `pair_from` is 0), going on over the pair's at step
  /// `pair_from`; from an empty pipeline to an empty pipeline.
  __device__ __forceinline__ void run(int pair_from, int steps, Sums& sums) const {
    constexpr int kStages = Shape::kStages, kSixteens = kDepth / 16;
    constexpr int kCopies = FeedX::kPasses + FeedW::kPasses;
    [[maybe_unused]] Carried<T, kTileRows, kDepth> carried_x;
    [[maybe_unused]] Carried<T, Shape::kN, kDepth> carried_w;
    FeedX x;
    FeedW w;
    const std::uint32_t to_x = base + FeedX::place(), to_w = base + Shape::kBytesX + FeedW::place();
    if (pair_from > 0) feed_base(x, w);

    // What comes with sixteenth i of a step: a share of the copies of the step kStages - 1 ahead.
    const auto start = [&](int i, int step, int stage) {
      if (i == 0 && step == pair_from && step < steps) feed_pair(x, w);
      const bool elements = kWay == Way::kAny && step < pair_from;
#pragma unroll
      for (int c = i * kCopies / kSixteens; c < (i + 1) * kCopies / kSixteens; ++c) {
        if (c < FeedX::kPasses) {
          if (!elements || a.x.copies) x.copy(c, to_x + stage * Shape::kStageBytes);
        } else {
          if (!elements || a.w.copies)
            w.copy(c - FeedX::kPasses, to_w + stage * Shape::kStageBytes);
        }
      }
      if constexpr (kWay == Way::kAny) {
        if (i == 0 && elements) {
          const std::int64_t k0 = k_begin + std::int64_t{step} * kDepth;
          if (!a.x.copies) carried_x.fetch(a.x, row0, a.m, k0, a.k);
          if (!a.w.copies) carried_w.fetch(a.w, col0, a.n, k0, a.k);
        }
        if (i == kSixteens - 1 && elements) {
          unsigned char* to = shared + stage * Shape::kStageBytes;
          if (!a.x.copies) carried_x.store(a.x, to);
          if (!a.w.copies) carried_w.store(a.w, to + Shape::kBytesX);
        }
      }
      if (i == kSixteens - 1) {
        x.next_step();
        w.next_step();
        copies_commit();
      }
    };
    for (int s = 0; s < kStages - 1; ++s) {
#pragma unroll
      for (int i = 0; i < kSixteens; ++i) start(i, s, s);
    }
    copies_wait<kStages - 2>();
    __syncthreads();
    Fragments<Shape> f[2];
    load(0, 0, f[0]);
    int stage = 0, free = kStages - 1;
#pragma unroll 1
    for (int step = 0; step < steps - 1; ++step) {
#pragma unroll
      for (int i = 0; i < kSixteens; ++i) {
        start(i, step + kStages - 1, free);
        if (i == kSixteens - 1) {
          // All warps have read this stage, and the next one has landed.
          free = stage;
          stage = stage + 1 == kStages ? 0 : stage + 1;
          copies_wait<kStages - 2>();
          __syncthreads();
        }
        load(stage, (i + 1) % kSixteens, f[(i + 1) % 2]);
        multiply(f[i % 2], sums);
      }
    }
    // The last step, of which only a sixteenth may be there: a pair of rank 16.
    const std::int64_t rest = pair_from < steps ? a.ranks : depth();
    const int sixteens = steps > 0 ? static_cast<int>((rest - 1) % kDepth / 16) + 1 : 0;
#pragma unroll 1
    for (int i = 0; i < sixteens; ++i) {
      if (i > 0) load(stage, i, f[0]);
      multiply(f[0], sums);
    }
    copies_wait<0>();
    __syncthreads();
  }

  /// Masks and scales what the pair has added. Bit 8g + e of a row in shared memory: whether column
  /// 8g + e of the tile is kept.
  __device__ __forceinline__ void drop(Sums& sums) const {
    constexpr int kGroups = Shape::kN / 8;
    const Masks masks = a.mask.masks();
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < kTileRows * kGroups; i += kTileThreads) {
      const std::int64_t row = row0 + i / kGroups, col = col0 + i % kGroups * 8;
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
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
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

  /// bias, y +=, and y in vectors of 16 bytes: by way of shared memory, half of a warp's rows at a
  /// time. A lane stores eight columns of every fourth row (of every eighth in narrow tiles). Short
  /// code: it runs once a tile, and what isn't in the instruction cache costs more than what it
  /// does.
  __device__ __forceinline__ void store(Sums& sums) const {
    constexpr int kChunks = Shape::kBlocksN, kPass = 32 / kChunks;
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const int g = lane / 4, q = lane % 4;
    unsigned char* mine = shared + warp * Shape::kOutBytes;
    const std::int64_t col = col0 + warp % 4 * Shape::kWarpN + lane % kChunks * 8;
    const int cols = a.n - col >= 8 ? 8 : static_cast<int>(a.n - col);
    float bias[8] = {};
    if (a.bias != nullptr) {
#pragma unroll 1
      for (int e = 0; e < cols; ++e) {
        const float value = load_element(a.bias, a.bias_type, (col + e) * a.bias_stride);
#pragma unroll
        for (int b = 0; b < 8; ++b) bias[b] = b == e ? value : bias[b];
      }
    }
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
        const std::int64_t row = row0 + warp / 4 * 64 + 32 * half + r;
        if (row >= a.m || cols <= 0) break;
        const float4* from =
            reinterpret_cast<const float4*>(mine + r * Shape::kOutStride + lane % kChunks * 32);
        const float4 low = from[0], high = from[1];
        float value[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int e = 0; e < 8; ++e) value[e] += bias[e];
        if (a.y_float) {
          put(static_cast<float*>(a.y) + split * a.split_stride + row * a.y_stride + col, value,
              cols);
        } else {
          put(static_cast<T*>(a.y) + row * a.y_stride + col, value, cols);
        }
      }
      __syncwarp();
    }
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

/// Blocks of rows that are worked on side by side: their x and W stay in L2.
inline constexpr std::int64_t kRasterRows = 8;

template <class T, class Shape, Way kWay>
__global__ void __launch_bounds__(kTileThreads, 1) tiles(const __grid_constant__ TileArgs a) {
  extern __shared__ __align__(128) unsigned char shared[];
  wait_for_earlier_kernels();
  std::int64_t tile = blockIdx.x;
  if (a.counters != nullptr) {
    __shared__ unsigned ticket;
    if (threadIdx.x == 0) ticket = atomicAdd(a.counters, 1u);
    __syncthreads();
    if (ticket < a.shrink_blocks) {
      for (std::int64_t row = std::int64_t{ticket} * kShrinkUnitRows; row < a.m;
           row += std::int64_t{a.shrink_blocks} * kShrinkUnitRows) {
        shrink_unit<T, true>(a.shrink, row,
                             reinterpret_cast<float*>(shared));  // ends with a barrier
        if (threadIdx.x == 0) {
          __threadfence();
          add_release(a.counters + 1 + row / kTileRows, 1);
        }
      }
      return;
    }
    tile = ticket - a.shrink_blocks;
  }
  const int split = static_cast<int>(tile % a.splits);
  tile /= a.splits;
  const std::int64_t blocks_m = (a.m + kTileRows - 1) / kTileRows;
  const std::int64_t blocks_n = (a.n + Shape::kN - 1) / Shape::kN;
  const std::int64_t group = tile / (kRasterRows * blocks_n),
                     in_group = tile % (kRasterRows * blocks_n);
  const std::int64_t rows =
      blocks_m - group * kRasterRows < kRasterRows ? blocks_m - group * kRasterRows : kRasterRows;
  const std::int64_t block_m = group * kRasterRows + in_group % rows, block_n = in_group / rows;

  const TileProduct<T, Shape, kWay> product(a, shared, block_m * kTileRows, block_n * Shape::kN,
                                            split);
  typename TileProduct<T, Shape, kWay>::Sums sums = {};
  // Base and pair in one run; or, to mask it, the pair in a run of its own first.
#pragma unroll 1
  for (int round = product.masked() ? 0 : 1; round < 2; ++round) {
    const int base_steps = round == 0 ? 0 : product.base_steps;
    const int pair_steps = round == 0 || !product.masked() ? product.pair_steps : 0;
    product.run(base_steps, base_steps + pair_steps, sums);
    if (round == 0) product.drop(sums);
  }
  product.store(sums);
}

}  // namespace graft::cuda::ampere
