#pragma once

#include <cstdint>
#include <type_traits>

#include "backend/cuda/element.cuh"
#include "backend/cuda/philox.cuh"

// The tile of the general path. A block of 256 threads makes kRows × kCols sums in float32,
//
//     out = scale · Σ over phases of  A (rows, depth) · B (depth, cols)
//
// The one idea: a low-rank pair is a phase of `rank` more steps on the same accumulators,
//
//            depth                    cols
//     A = [ s·h | x ]        B = [ E ; W ]        out = A · B + bias
//
// of which the pair comes first, so that dropout can mask its part before the base is added. A step
// is kDepth deep: while its products run from one half of shared memory, the next step's elements
// are on their way from memory to registers, and then go to the other half:
//
//     memory --16-byte loads--> registers --> shared [2][kDepth][kRows + kCols] --> 8 × 8 a thread
//
// Shared memory is deep-major: row k holds all rows of A (columns of B) at depth k, each moved by
// an exclusive or, so that vectors along the depth are stored without bank conflicts and four
// neighbours stay four neighbours. Per step and thread: kDepth · 64 FMAs for kDepth · 4 loads of 16
// bytes from shared memory.

namespace graft::cuda {

inline constexpr int kTileThreads = 256;

/// One operand of a product, seen from its tile: `wide` is a row of A or a column of B.
struct Side {
  const void* data = nullptr;
  std::int64_t wide_stride = 0, deep_stride = 0;  // in elements
  DType dtype = DType::kFloat32;
  bool deep_is_near = false;  // neighbours along the depth are nearer in memory
};

struct Phase {
  Side a, b;
  std::int64_t depth = 0;
  float a_scale = 1.0f;
};

/// Where sums go.
struct TileOutput {
  void* data = nullptr;
  std::int64_t row_stride = 0, col_stride = 0, split_stride = 0;
  DType dtype = DType::kFloat32;
  bool accumulate = false;
  bool vectors = false;  // four columns are one aligned store
};

struct TileArgs {
  std::int64_t rows = 0, cols = 0;
  Phase pair, base;
  DType multiply = DType::kFloat32;  // what operands are rounded to
  bool floats = false;               // that, and the base's operands, are float32
  float scale = 1.0f;
  // Splits of the depth of the base, `split_depth` each; the pair belongs to the first.
  std::int64_t split_depth = 0;
  // On A of the base (element = row · drop_row + depth · drop_deep), whose scale is the caller's;
  // or on the pair's sums (element of the output).
  DropoutArgs input_dropout;
  std::int64_t drop_row = 0, drop_deep = 0;
  DropoutArgs output_dropout;
  const void* bias = nullptr;
  std::int64_t bias_stride = 0;
  DType bias_dtype = DType::kFloat32;
  TileOutput out;
};

__device__ inline float rounded_to(DType dtype, float value) {
  switch (dtype) {
    case DType::kFloat16:
      return rounded<__half>(value);
    case DType::kBFloat16:
      return rounded<__nv_bfloat16>(value);
    default:
      return value;
  }
}

/// How a side is read: element by element, of any type or of float32, or as float32 in vectors of
/// four along an axis.
enum class Read : std::uint8_t { kAny, kFloats, kAlongDepth, kAlongWide };

/// Where element `wide` of depth `deep` lies in a half of shared memory. A warp that stores vectors
/// along the depth has kDepth / 4 of them side by side and 128 / kDepth wides: these fill 32 banks.
template <int kWide, int kDepth>
__device__ constexpr int shared_index(int wide, int deep) {
  return deep * kWide + (wide ^ (deep / 4 * (128 / kDepth) & 31));
}

/// No dropout.
struct KeepsAll {};

/// Dropout of a side's elements, wide · wide_stride + deep · deep_stride of the whole.
struct Drops {
  Masks masks;
  std::int64_t wide_stride, deep_stride;

  __device__ std::uint64_t element(std::int64_t wide, std::int64_t deep) const {
    return static_cast<std::uint64_t>(wide * wide_stride + deep * deep_stride);
  }
};

/// A side's part of a step on its way from memory to shared memory, one step after another from
/// depth `begin` on. What is past `wides` or past the depth is 0.
template <Read kRead, int kWide, int kDepth>
class Fetch;

// Element by element, neighbouring threads reading neighbours in memory. A thread's elements are
// equal steps apart.
template <int kWide, int kDepth, bool kFloats>
class FetchElements {
 public:
  __device__ FetchElements(const Side& side, std::int64_t first, std::int64_t wides,
                           std::int64_t begin, float scale, DType multiply)
      : side_(side),
        from_((first + wide_of(0)) * side.wide_stride + (begin + deep_of(0)) * side.deep_stride),
        step_(wide_step() * side.wide_stride + deep_step() * side.deep_stride),
        first_(first),
        depth_(begin),
        wides_(static_cast<int>(min(wides - first, std::int64_t{kWide}))),
        scale_(scale),
        multiply_(multiply) {}

  /// The next step, of which `left` depths are there.
  template <class Kept>
  __device__ void load(int left, const Kept& kept) {
    constexpr bool kPlain = kFloats && std::is_same_v<Kept, KeepsAll>;
    const std::uint32_t mask = kept_elements(kept);
    if (kPlain && wides_ == kWide && left >= kDepth) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        values_[i] = scale_ * static_cast<const float*>(side_.data)[from_ + i * step_];
      }
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const int wide = wide_of(i), deep = deep_of(i);
        float value = 0;
        if (wide < wides_ && deep < left && (mask >> i & 1) != 0) {
          value =
              load_as_float(side_.data, kFloats ? DType::kFloat32 : side_.dtype, from_ + i * step_);
          value *= scale_;
          if (!kFloats) value = rounded_to(multiply_, value);
        }
        values_[i] = value;
      }
    }
    from_ += kDepth * side_.deep_stride;
    depth_ += kDepth;
  }

  __device__ void store(float* shared) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      shared[shared_index<kWide, kDepth>(wide_of(i), deep_of(i))] = values_[i];
    }
  }

 private:
  static constexpr int kCount = kWide * kDepth / kTileThreads;

  // Bit i: whether dropout keeps element i of this step.
  __device__ std::uint32_t kept_elements(const KeepsAll&) const { return ~0u; }
  __device__ std::uint32_t kept_elements(const Drops& drops) const {
    const bool deep = side_.deep_is_near;
    const std::int64_t near = deep ? drops.deep_stride : drops.wide_stride;
    const std::int64_t far = deep ? drops.wide_stride : drops.deep_stride;
    std::uint32_t kept = 0;
    if (kDepth % 32 != 0 || near != 1 || far % 8 != 0) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const std::uint64_t element = drops.element(first_ + wide_of(i), depth_ + deep_of(i));
        kept |= (drops.masks.keeps(element) ? 1u : 0u) << i;
      }
      return kept;
    }
    // Element i of a warp's lanes is 32 neighbours, four calls of Philox. For eight such i, each
    // lane makes one call, i = lane / 4, and gets the bits of its own elements from the others.
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int first = 0; first < kCount; first += 8) {
      // wide_of and deep_of are the same for all lanes but for the lane itself.
      const int i = first + lane / 4;
      const std::uint64_t element = drops.element(first_ + wide_of(0) + i * wide_step(),
                                                  depth_ + deep_of(0) + i * deep_step());
      const PhiloxWords words = drops.masks.words((element - lane) / 8 + lane % 4);
      std::uint32_t bits = 0;
#pragma unroll
      for (int field = 0; field < 8; ++field) {
        bits |= (words.field(field) >= drops.masks.threshold ? 1u : 0u) << field;
      }
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const std::uint32_t eight = __shfl_sync(~0u, bits, 4 * j + lane / 8);
        kept |= (eight >> (lane % 8) & 1) << (first + j);
      }
    }
    return kept;
  }

  // From a thread's element to its next.
  __device__ int wide_step() const { return side_.deep_is_near ? kTileThreads / kDepth : 0; }
  __device__ int deep_step() const { return side_.deep_is_near ? 0 : kTileThreads / kWide; }
  __device__ int wide_of(int i) const {
    const int at = static_cast<int>(threadIdx.x);
    return (side_.deep_is_near ? at / kDepth : at % kWide) + i * wide_step();
  }
  __device__ int deep_of(int i) const {
    const int at = static_cast<int>(threadIdx.x);
    return (side_.deep_is_near ? at % kDepth : at / kWide) + i * deep_step();
  }

  const Side& side_;
  std::int64_t from_;  // the step's first element of this thread
  const std::int64_t step_, first_;
  std::int64_t depth_;
  const int wides_;
  const float scale_;
  const DType multiply_;
  float values_[kCount];
};

// Vectors of float32, aligned to 16 bytes; the last one of a row may be cut short.
template <int kWide, int kDepth, bool kDeep>
class FetchVectors {
 public:
  __device__ FetchVectors(const Side& side, std::int64_t first, std::int64_t wides,
                          std::int64_t begin, float, DType)
      : side_(side),
        from_(static_cast<const float*>(side.data) + (first + wide_of(0)) * side.wide_stride +
              (begin + deep_of(0)) * side.deep_stride),
        wides_(static_cast<int>(min(wides - first, std::int64_t{kWide}))) {}

  template <class Kept>
  __device__ void load(int left, const Kept&) {
    if (wides_ == kWide && left >= kDepth) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const float4 vector = *reinterpret_cast<const float4*>(from_ + i * step());
        values_[i][0] = vector.x, values_[i][1] = vector.y;
        values_[i][2] = vector.z, values_[i][3] = vector.w;
      }
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        // How many of the four are there.
        const int here = kDeep ? (wide_of(i) < wides_ ? left - deep_of(i) : 0)
                               : (deep_of(i) < left ? wides_ - wide_of(i) : 0);
#pragma unroll
        for (int j = 0; j < 4; ++j) values_[i][j] = j < here ? from_[i * step() + j] : 0.0f;
      }
    }
    from_ += kDepth * (kDeep ? 1 : side_.deep_stride);
  }

  __device__ void store(float* shared) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if constexpr (kDeep) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          shared[shared_index<kWide, kDepth>(wide_of(i), deep_of(i) + j)] = values_[i][j];
        }
      } else {
        *reinterpret_cast<float4*>(shared + shared_index<kWide, kDepth>(wide_of(i), deep_of(i))) =
            make_float4(values_[i][0], values_[i][1], values_[i][2], values_[i][3]);
      }
    }
  }

 private:
  static constexpr int kCount = kWide * kDepth / 4 / kTileThreads;
  // From a vector of a thread to its next.
  static constexpr int kWideStep = kTileThreads / (kDepth / 4);
  static constexpr int kDeepStep = kTileThreads / (kWide / 4);

  __device__ std::int64_t step() const {
    return kDeep ? kWideStep * side_.wide_stride : kDeepStep * side_.deep_stride;
  }
  static __device__ int wide_of(int i) {
    const int at = static_cast<int>(threadIdx.x);
    return kDeep ? at / (kDepth / 4) + i * kWideStep : at % (kWide / 4) * 4;
  }
  static __device__ int deep_of(int i) {
    const int at = static_cast<int>(threadIdx.x);
    return kDeep ? at % (kDepth / 4) * 4 : at / (kWide / 4) + i * kDeepStep;
  }

  const Side& side_;
  const float* from_;
  const int wides_;
  float values_[kCount][4];
};

template <int kWide, int kDepth>
class Fetch<Read::kAny, kWide, kDepth> : public FetchElements<kWide, kDepth, false> {
  using FetchElements<kWide, kDepth, false>::FetchElements;
};
template <int kWide, int kDepth>
class Fetch<Read::kFloats, kWide, kDepth> : public FetchElements<kWide, kDepth, true> {
  using FetchElements<kWide, kDepth, true>::FetchElements;
};
template <int kWide, int kDepth>
class Fetch<Read::kAlongDepth, kWide, kDepth> : public FetchVectors<kWide, kDepth, true> {
  using FetchVectors<kWide, kDepth, true>::FetchVectors;
};
template <int kWide, int kDepth>
class Fetch<Read::kAlongWide, kWide, kDepth> : public FetchVectors<kWide, kDepth, false> {
  using FetchVectors<kWide, kDepth, false>::FetchVectors;
};

/// Which sums of a tile a thread has. Warps are 4 × 2 in the tile, lanes 4 × 8 in a warp; a thread
/// has runs of neighbours, so that it loads and stores vectors. Lane 8c + 2r + c' has the lane's
/// row r and column 2c + c': the eight lanes that a load of 16 bytes serves at once then read four
/// rows of A and two columns of B, and not one and eight, which is 2 to 3 % faster.
///
///     rows  kRows / 4 · warp + 4 · lane's row + 16 · i + {0..3}
///     cols  kCols / 2 · warp + kColRun · lane's col + 8 · kColRun · j + {0..kColRun - 1}
template <int kRows, int kCols>
struct Place {
  static constexpr int kRowRuns = kRows / 64;
  static constexpr int kColRun = kCols >= 64 ? 4 : kCols / 16;
  static constexpr int kColRuns = kCols / 16 / kColRun;

  static __device__ int row(int run) {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    return warp / 2 * (kRows / 4) + lane / 2 % 4 * 4 + 16 * run;
  }
  static __device__ int col(int run) {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    return warp % 2 * (kCols / 2) + (lane / 8 * 2 + lane % 2) * kColRun + 8 * kColRun * run;
  }
};

template <int kRows, int kCols>
struct Sums {
  float values[kRows / 16][kCols / 16] = {};
};

/// sums += the products of one step in shared memory.
template <int kRows, int kCols, int kDepth>
__device__ void multiply_step(const float* a_shared, const float* b_shared,
                              Sums<kRows, kCols>& sums) {
  using At = Place<kRows, kCols>;
#pragma unroll
  for (int deep = 0; deep < kDepth; ++deep) {
    float a[kRows / 16], b[kCols / 16];
#pragma unroll
    for (int run = 0; run < At::kRowRuns; ++run) {
      const float4 four = *reinterpret_cast<const float4*>(
          a_shared + shared_index<kRows, kDepth>(At::row(run), deep));
      a[4 * run] = four.x, a[4 * run + 1] = four.y, a[4 * run + 2] = four.z,
            a[4 * run + 3] = four.w;
    }
#pragma unroll
    for (int run = 0; run < At::kColRuns; ++run) {
      const auto some = *reinterpret_cast<const Pack<float, At::kColRun>*>(
          b_shared + shared_index<kCols, kDepth>(At::col(run), deep));
#pragma unroll
      for (int j = 0; j < At::kColRun; ++j) b[At::kColRun * run + j] = some.values[j];
    }
#pragma unroll
    for (int i = 0; i < kRows / 16; ++i) {
#pragma unroll
      for (int j = 0; j < kCols / 16; ++j) {
        sums.values[i][j] = fmaf(a[i], b[j], sums.values[i][j]);
      }
    }
  }
}

/// sums += A · B over depths [begin, end) of a phase. `shared` has two halves of a step.
template <int kRows, int kCols, int kDepth, Read kA, Read kB, class Kept>
__device__ void multiply_phase(const TileArgs& args, const Phase& phase, std::int64_t row,
                               std::int64_t col, std::int64_t begin, std::int64_t end,
                               const Kept& kept, float* shared, Sums<kRows, kCols>& sums) {
  constexpr int kHalf = kDepth * (kRows + kCols);
  if (begin >= end) return;
  Fetch<kA, kRows, kDepth> a(phase.a, row, args.rows, begin, phase.a_scale, args.multiply);
  Fetch<kB, kCols, kDepth> b(phase.b, col, args.cols, begin, 1.0f, args.multiply);
  std::int64_t left = end - begin;
  const auto load = [&] {
    const int here = static_cast<int>(min(left, std::int64_t{kDepth}));
    a.load(here, kept);
    b.load(here, KeepsAll{});
  };
  const auto store = [&](float* half) {
    a.store(half);
    b.store(half + kDepth * kRows);
  };
  load();
  store(shared);
  __syncthreads();
  float *now = shared, *next = shared + kHalf;
  while (true) {
    left -= kDepth;
    if (left > 0) load();
    multiply_step<kRows, kCols, kDepth>(now, now + kDepth * kRows, sums);
    if (left > 0) store(next);
    __syncthreads();
    if (left <= 0) break;
    float* const other = now;
    now = next, next = other;
  }
}

/// Masks a thread's sums as elements of the output, four neighbours with one or two of Philox.
template <int kRows, int kCols>
__device__ void drop_sums(const TileArgs& args, std::int64_t row, std::int64_t col,
                          Sums<kRows, kCols>& sums) {
  using At = Place<kRows, kCols>;
  const Masks masks = args.output_dropout.masks();
#pragma unroll
  for (int i = 0; i < kRows / 16; ++i) {
    const std::int64_t at_row = row + At::row(i / 4) + i % 4;
#pragma unroll
    for (int run = 0; run < At::kColRuns; ++run) {
      const std::uint64_t first = at_row * args.cols + col + At::col(run);
      PhiloxWords words = masks.words(first / 8);
#pragma unroll
      for (int j = 0; j < At::kColRun; ++j) {
        const std::uint64_t element = first + j;
        if (j > 0 && element % 8 == 0) words = masks.words(element / 8);
        const std::uint32_t bits = words.field(static_cast<int>(element % 8));
        float& sum = sums.values[i][At::kColRun * run + j];
        sum = bits >= masks.threshold ? sum * masks.scale : 0.0f;
      }
    }
  }
}

/// out = scale · sums + bias, or +=.
template <int kRows, int kCols>
__device__ void store_sums(const TileArgs& args, std::int64_t row, std::int64_t col,
                           const Sums<kRows, kCols>& sums) {
  using At = Place<kRows, kCols>;
  const TileOutput& out = args.out;
  const std::int64_t split = static_cast<std::int64_t>(blockIdx.y) * out.split_stride;
#pragma unroll
  for (int run = 0; run < At::kColRuns; ++run) {
    const std::int64_t first = col + At::col(run);
    float bias[At::kColRun];
#pragma unroll
    for (int j = 0; j < At::kColRun; ++j) {
      bias[j] = args.bias != nullptr && first + j < args.cols
                    ? load_as_float(args.bias, args.bias_dtype, (first + j) * args.bias_stride)
                    : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kRows / 16; ++i) {
      const std::int64_t at_row = row + At::row(i / 4) + i % 4;
      if (at_row >= args.rows) continue;
      const std::int64_t at = split + at_row * out.row_stride + first * out.col_stride;
      float values[At::kColRun];
#pragma unroll
      for (int j = 0; j < At::kColRun; ++j) {
        values[j] = fmaf(args.scale, sums.values[i][At::kColRun * run + j], bias[j]);
      }
      if (out.vectors && !out.accumulate && first + At::kColRun <= args.cols) {
        Pack<float, At::kColRun> pack;
#pragma unroll
        for (int j = 0; j < At::kColRun; ++j) pack.values[j] = values[j];
        *reinterpret_cast<Pack<float, At::kColRun>*>(static_cast<float*>(out.data) + at) = pack;
        continue;
      }
#pragma unroll
      for (int j = 0; j < At::kColRun; ++j) {
        if (first + j >= args.cols) continue;
        const std::int64_t offset = at + j * out.col_stride;
        if (out.accumulate) values[j] += load_as_float(out.data, out.dtype, offset);
        store_from_float(out.data, out.dtype, offset, values[j]);
      }
    }
  }
}

/// The first row and column of this block's tile. Tiles go by groups of eight rows of tiles, column
/// after column, so that blocks that run together share what they read.
template <int kRows, int kCols>
__device__ void find_tile(const TileArgs& args, std::int64_t& row, std::int64_t& col) {
  constexpr unsigned kGroup = 8;
  const unsigned row_tiles = static_cast<unsigned>((args.rows + kRows - 1) / kRows);
  const unsigned col_tiles = static_cast<unsigned>((args.cols + kCols - 1) / kCols);
  const unsigned group = blockIdx.x / (kGroup * col_tiles);
  const unsigned height = min(kGroup, row_tiles - group * kGroup);
  const unsigned within = blockIdx.x - group * kGroup * col_tiles;
  row = static_cast<std::int64_t>(group * kGroup + within % height) * kRows;
  col = static_cast<std::int64_t>(within / height) * kCols;
}

/// Shared memory of a tile: two steps.
template <int kRows, int kCols, int kDepth>
using TileShared = float[2 * kDepth * (kRows + kCols)];

/// y of a term.
template <int kRows, int kCols, int kDepth, Read kA, Read kB>
__device__ __forceinline__ void make_term_tile(const TileArgs& args, float* shared) {
  std::int64_t row, col;
  find_tile<kRows, kCols>(args, row, col);
  Sums<kRows, kCols> sums;
  if (blockIdx.y == 0) {
    constexpr Read kPair = kA == Read::kAny ? Read::kAny : Read::kFloats;
    multiply_phase<kRows, kCols, kDepth, kPair, kPair>(args, args.pair, row, col, 0,
                                                       args.pair.depth, KeepsAll{}, shared, sums);
    if (args.output_dropout.any()) drop_sums(args, row, col, sums);
  }
  const std::int64_t begin = blockIdx.y * args.split_depth;
  const std::int64_t end = min(begin + args.split_depth, args.base.depth);
  multiply_phase<kRows, kCols, kDepth, kA, kB>(args, args.base, row, col, begin, end, KeepsAll{},
                                               shared, sums);
  store_sums(args, row, col, sums);
}

/// By vectors of float32.
template <int kRows, int kCols, int kDepth, Read kA, Read kB>
__global__ void __launch_bounds__(kTileThreads, 1)
    vectors_tile(const __grid_constant__ TileArgs args) {
  __shared__ __align__(16) TileShared<kRows, kCols, kDepth> shared;
  make_term_tile<kRows, kCols, kDepth, kA, kB>(args, shared);
}

/// Element by element.
template <int kRows, int kCols, int kDepth>
__global__ void __launch_bounds__(kTileThreads, kRows >= 128 ? 1 : 2)
    elements_tile(const __grid_constant__ TileArgs args) {
  __shared__ __align__(16) TileShared<kRows, kCols, kDepth> shared;
  if (args.floats) {
    make_term_tile<kRows, kCols, kDepth, Read::kFloats, Read::kFloats>(args, shared);
  } else {
    make_term_tile<kRows, kCols, kDepth, Read::kAny, Read::kAny>(args, shared);
  }
}

template <int kRows, int kCols, int kDepth, Read kRead>
__device__ __forceinline__ void make_narrow_tile(const TileArgs& args, float* shared) {
  std::int64_t row, col;
  find_tile<kRows, kCols>(args, row, col);
  Sums<kRows, kCols> sums;
  const std::int64_t begin = blockIdx.y * args.split_depth;
  const std::int64_t end = min(begin + args.split_depth, args.base.depth);
  if (args.input_dropout.any()) {
    const Drops kept{args.input_dropout.masks(), args.drop_row, args.drop_deep};
    multiply_phase<kRows, kCols, kDepth, kRead, kRead>(args, args.base, row, col, begin, end, kept,
                                                       shared, sums);
  } else {
    multiply_phase<kRows, kCols, kDepth, kRead, kRead>(args, args.base, row, col, begin, end,
                                                       KeepsAll{}, shared, sums);
  }
  store_sums(args, row, col, sums);
}

/// Few columns, and dropout on A: h = drop(x)·S, and an outer product's transpose,
/// drop(matrix)ᵀ · coefficients.
template <int kRows, int kCols, int kDepth>
__global__ void __launch_bounds__(kTileThreads) narrow_tile(const __grid_constant__ TileArgs args) {
  __shared__ __align__(16) TileShared<kRows, kCols, kDepth> shared;
  if (args.floats) {
    make_narrow_tile<kRows, kCols, kDepth, Read::kFloats>(args, shared);
  } else {
    make_narrow_tile<kRows, kCols, kDepth, Read::kAny>(args, shared);
  }
}

}  // namespace graft::cuda
