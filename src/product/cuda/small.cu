// A pair alone in one launch, for shapes where a launch takes longer than the arithmetic:
//
//     h = x·A        y = s·h·B
//
// A block has a few rows of x, and nothing of another block's: h stays in its shared memory.
//
//            K                 rank                                  N
//     x [ rows of a block ] ·  A   ->  partial h of each warp  ->  h  ·  B  ->  y
//                              |        (a slice of K, four           |
//                        lanes along K   ranks: summed by             two columns a thread, B in
//                                        shuffles, then through       registers before h is known
//                                        shared memory)
//
// Bytes: x and y once, A and B once a block from L2. One row a block makes the most of a device
// that a few rows can't fill: 128 rows of 512 -> 512 take 1.5 to 2 µs, of which an empty kernel
// takes 0.5. More rows a block read A and B less often. The kernel waits for the kernels before it
// before it reads anything (griddepcontrol.wait), so that it may be launched while they end.
//
// Half types of many rows multiply in the matrix units, 16 rows a block: FMAs would take longer
// than the memory does.

#include <algorithm>

#include "backend/cuda/element.cuh"
#include "backend/cuda/mma.cuh"
#include "product/cuda/paths.h"

namespace graft::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kMostRank = 32;
constexpr int kColsAtOnce = 2 * kThreads;  // two columns a thread

struct SmallArgs {
  const void *x, *a, *b;
  void* y;
  float* h;  // null: not wanted
  std::int64_t rows, x_stride, y_stride;
  std::int64_t a_row, a_col, b_row, b_col;
  int depth, cols, rank;
  float scaling;
  bool accumulate;
  bool a_vectors;  // four ranks of A are one aligned load
};

/// Four elements `stride` apart, as T rounds them.
template <class T, class Source>
__device__ void load_four(const Source* from, std::int64_t stride, bool vectors, float (&to)[4]) {
  if (vectors) {
    const auto four = *reinterpret_cast<const Pack<Source, 4>*>(from);
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = rounded<T>(to_float(four.values[i]));
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = rounded<T>(to_float(from[i * stride]));
  }
}

/// Sums each of kCount values over a warp. In every step half of the lanes go on with one half of
/// the values, the other half with the other: after it, lane l has the sums of values
/// l / (32 / kCount), or for 32 values and more l · (kCount / 32) + i, in values[i].
template <int kCount>
__device__ void sum_over_warp(float (&values)[kCount]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  constexpr int kHalvings = kCount >= 32 ? 5 : kCount >= 16 ? 4 : kCount >= 4 ? 2 : 0;
#pragma unroll
  for (int step = 0; step < 5; ++step) {
    const int offset = 16 >> step;
    if (step < kHalvings) {
      const int half = kCount >> (step + 1);
      const bool upper = (lane & offset) != 0;
#pragma unroll
      for (int i = 0; i < kCount / 2; ++i) {
        if (i >= half) break;
        const float mine = upper ? values[i + half] : values[i];
        const float theirs = upper ? values[i] : values[i + half];
        values[i] = mine + __shfl_xor_sync(~0u, theirs, offset);
      }
    } else {
      values[0] += __shfl_xor_sync(~0u, values[0], offset);
    }
  }
}

template <class T, class AB, int kRows>
__global__ void __launch_bounds__(kThreads) small_delta(const __grid_constant__ SmallArgs args) {
  __shared__ __align__(16) float partial[kWarps][kRows][kMostRank];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int quads = args.rank / 4, slices = kWarps / quads;
  const int quad = warp % quads, slice = warp / quads;
  const std::int64_t first = std::int64_t{blockIdx.x} * kRows;
  const auto* const x = static_cast<const T*>(args.x);
  const auto* const b = static_cast<const AB*>(args.b);
  wait_for_earlier_kernels();

  // Of this thread's first columns: on their way while h is made.
  const int col = 2 * static_cast<int>(threadIdx.x);
  float columns[kMostRank][2];
  const auto load_columns = [&](int at) {
#pragma unroll
    for (int r = 0; r < kMostRank; ++r) {
      if (r >= args.rank) break;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        columns[r][j] = rounded<T>(to_float(b[r * args.b_row + (at + j) * args.b_col]));
      }
    }
  };
  if (kRows == 1 && col < args.cols) load_columns(col);

  float sums[4 * kRows] = {};
  if (slice < slices) {
    const AB* a = static_cast<const AB*>(args.a) + 4 * quad * args.a_col;
#pragma unroll 4
    for (int k = slice * 32 + lane; k < args.depth; k += 32 * slices) {
      float four[4];
      load_four<T>(a + k * args.a_row, args.a_col, args.a_vectors, four);
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        const std::int64_t at = min(first + row, args.rows - 1);
        const float value = to_float(x[at * args.x_stride + k]);
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[4 * row + j] = fmaf(value, four[j], sums[4 * row + j]);
      }
    }
    sum_over_warp(sums);
    constexpr int kLanes = 4 * kRows >= 32 ? 1 : 32 / (4 * kRows);  // that have one value
    constexpr int kValues = 4 * kRows >= 32 ? 4 * kRows / 32 : 1;   // of one lane
    if (lane % kLanes == 0) {
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        const int value = lane / kLanes * kValues + i;
        partial[slice][value / 4][4 * quad + value % 4] = sums[i];
      }
    }
  }
  __syncthreads();

  // h of all slices, in the first one's place.
  const auto sum_slices = [&](int row, int r) {
    float sum = partial[0][row][r];
    for (int i = 1; i < slices; ++i) sum += partial[i][row][r];
    return sum;
  };
  if constexpr (kRows == 1) {
    if (args.h != nullptr && threadIdx.x < args.rank) {
      args.h[first * args.rank + threadIdx.x] = sum_slices(0, static_cast<int>(threadIdx.x));
    }
  } else {
    for (int at = static_cast<int>(threadIdx.x); at < kRows * args.rank; at += kThreads) {
      const int row = at / args.rank, r = at % args.rank;
      const float sum = sum_slices(row, r);
      partial[0][row][r] = sum;
      if (args.h != nullptr && first + row < args.rows) args.h[first * args.rank + at] = sum;
    }
    __syncthreads();
  }

  auto* const y = static_cast<T*>(args.y);
  for (int at = col; at < args.cols; at += kColsAtOnce) {
    if (kRows > 1 || at != col) load_columns(at);
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      if (first + row >= args.rows) break;
      float result[2] = {};
#pragma unroll
      for (int r = 0; r < kMostRank; r += 4) {
        if (r >= args.rank) break;
        float4 h = *reinterpret_cast<const float4*>(&partial[0][row][r]);
        if constexpr (kRows == 1) {
          for (int i = 1; i < slices; ++i) {
            const float4 more = *reinterpret_cast<const float4*>(&partial[i][row][r]);
            h.x += more.x, h.y += more.y, h.z += more.z, h.w += more.w;
          }
        }
        const float four[4] = {h.x, h.y, h.z, h.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float scaled = rounded<T>(args.scaling * four[i]);
#pragma unroll
          for (int j = 0; j < 2; ++j) result[j] = fmaf(scaled, columns[r + i][j], result[j]);
        }
      }
      auto* const to = reinterpret_cast<Pack<T, 2>*>(y + (first + row) * args.y_stride + at);
      Pack<T, 2> pack;
      if (args.accumulate) {
        pack = *to;
#pragma unroll
        for (int j = 0; j < 2; ++j) result[j] += to_float(pack.values[j]);
      }
#pragma unroll
      for (int j = 0; j < 2; ++j) pack.values[j] = from_float<T>(result[j]);
      *to = pack;
    }
  }
}

// The matrix units' way, 16 rows a block. A warp makes h of a slice of K, 16 × rank sums in the
// registers of mma.m16n8k16; the slices' sums go through shared memory; then a warp makes 64
// columns of y at a time, all of whose depth is the rank.

/// Two neighbours along the depth, rounded to T, as one register of mma's operand b.
template <class T, class AB>
__device__ std::uint32_t load_pair(const AB* from, std::int64_t stride, bool first, bool second) {
  Pack<T, 2> pack;
  pack.values[0] = from_float<T>(first ? to_float(from[0]) : 0.0f);
  pack.values[1] = from_float<T>(second ? to_float(from[stride]) : 0.0f);
  return *reinterpret_cast<const std::uint32_t*>(&pack);
}

template <class T, class AB>
__global__ void __launch_bounds__(kThreads)
    small_delta_tiles(const __grid_constant__ SmallArgs args) {
  constexpr int kRows = 16, kRankTiles = kMostRank / 8, kColTiles = 8;
  __shared__ __align__(16) float partial[kWarps][kRows][kMostRank];
  __shared__ __align__(16) T scaled[kRows][kMostRank + 8];  // s·h; 8 more against bank conflicts
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int group = lane / 4, pair = lane % 4 * 2;  // of mma's layout
  const std::int64_t first = std::int64_t{blockIdx.x} * kRows;
  const auto* const a = static_cast<const AB*>(args.a);
  const auto* const b = static_cast<const AB*>(args.b);
  wait_for_earlier_kernels();

  // A warp's slices are 16 deep: 16·warp, 16·warp + 128, ...
  float sums[kRankTiles][4] = {};
  const T* x[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const std::int64_t row = min(first + group + 8 * i, args.rows - 1);
    x[i] = static_cast<const T*>(args.x) + row * args.x_stride;
  }
#pragma unroll 4
  for (int k = 16 * warp; k < args.depth; k += 16 * kWarps) {
    std::uint32_t rows[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = k + pair + i / 2 * 8;
      rows[i] = at < args.depth ? *reinterpret_cast<const std::uint32_t*>(x[i % 2] + at) : 0;
    }
#pragma unroll
    for (int tile = 0; tile < kRankTiles; ++tile) {
      if (8 * tile >= args.rank) break;
      const bool here = 8 * tile + group < args.rank;
      std::uint32_t operand[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int at = k + pair + 8 * i;
        const bool there = here && at < args.depth;  // the depth is even
        operand[i] = load_pair<T>(a + at * args.a_row + (8 * tile + group) * args.a_col, args.a_row,
                                  there, there);
      }
      mma<T>(sums[tile], rows, operand);
    }
  }
#pragma unroll
  for (int tile = 0; tile < kRankTiles; ++tile) {
    if (8 * tile >= args.rank) break;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      partial[warp][group + i / 2 * 8][8 * tile + pair + i % 2] = sums[tile][i];
    }
  }
  __syncthreads();
  for (int at = static_cast<int>(threadIdx.x); at < kRows * kMostRank; at += kThreads) {
    const int row = at / kMostRank, r = at % kMostRank;
    float sum = 0;
    if (r < args.rank) {
#pragma unroll
      for (int i = 0; i < kWarps; ++i) sum += partial[i][row][r];
      if (args.h != nullptr && first + row < args.rows) {
        args.h[(first + row) * args.rank + r] = sum;
      }
    }
    scaled[row][r] = from_float<T>(args.scaling * sum);
  }
  __syncthreads();

  std::uint32_t rows[kMostRank / 16][4];
#pragma unroll
  for (int step = 0; step < kMostRank / 16; ++step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      rows[step][i] = *reinterpret_cast<const std::uint32_t*>(
          &scaled[group + i % 2 * 8][16 * step + pair + i / 2 * 8]);
    }
  }
  auto* const y = static_cast<T*>(args.y);
  for (int col = 8 * kColTiles * warp; col < args.cols; col += 8 * kColTiles * kWarps) {
#pragma unroll
    for (int tile = 0; tile < kColTiles; ++tile) {
      const int b_col = col + 8 * tile + group, y_col = col + 8 * tile + pair;
      float result[4] = {};
#pragma unroll
      for (int step = 0; step < kMostRank / 16; ++step) {
        if (16 * step >= args.rank) break;
        std::uint32_t operand[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int at = 16 * step + pair + 8 * i;
          const bool there = b_col < args.cols && at < args.rank;  // the rank is even
          operand[i] =
              load_pair<T>(b + at * args.b_row + b_col * args.b_col, args.b_row, there, there);
        }
        mma<T>(result, rows[step], operand);
      }
      if (y_col >= args.cols) continue;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const std::int64_t row = first + group + 8 * i;
        if (row >= args.rows) continue;
        auto* const to = reinterpret_cast<Pack<T, 2>*>(y + row * args.y_stride + y_col);
        float values[2] = {result[2 * i], result[2 * i + 1]};
        Pack<T, 2> pack;
        if (args.accumulate) {
          pack = *to;
#pragma unroll
          for (int j = 0; j < 2; ++j) values[j] += to_float(pack.values[j]);
        }
#pragma unroll
        for (int j = 0; j < 2; ++j) pack.values[j] = from_float<T>(values[j]);
        *to = pack;
      }
    }
  }
}

// Rows of a block: one while that fills the device, then so many that A and B are not what is read
// most.
constexpr std::int64_t kOneRow = 264, kFourRows = 1056;
constexpr std::int64_t kMostRows = 16384, kMostFeatures = 4096;

bool pairs_aligned(const ConstTensorView& view) {
  return view.stride(1) == 1 && view.stride(0) % 2 == 0 &&
         reinterpret_cast<std::uintptr_t>(view.data()) % (2 * size_of(view.dtype())) == 0;
}

template <class T, class AB>
void launch(const Call& call, const SmallArgs& args) {
  const auto blocks = [&](std::int64_t rows) {
    return Launch{.grid = static_cast<unsigned>((args.rows + rows - 1) / rows),
                  .block = kThreads,
                  .overlaps = true};
  };
  if (args.rows <= kOneRow) return call.launch(blocks(1), small_delta<T, AB, 1>, args);
  if constexpr (std::is_same_v<T, float>) {
    if (args.rows > kFourRows) return call.launch(blocks(16), small_delta<T, AB, 16>, args);
  } else {
    if (args.rows > kFourRows) return call.launch(blocks(16), small_delta_tiles<T, AB>, args);
  }
  call.launch(blocks(4), small_delta<T, AB, 4>, args);
}

}  // namespace

bool fits_small(const Term& term, const DeviceFacts&) {
  const LowRank& pair = term.pair;
  if (term.w.present() || term.bias.present() || !pair.present() || !term.y.present()) return false;
  if (!term.outer_products.empty() || pair.input_dropout || pair.output_dropout) return false;
  const std::int64_t rows = term.x.dim(0), depth = term.x.dim(1), cols = term.y.dim(1);
  if (rows < 1 || rows > kMostRows || pair.rank() % 4 != 0 || pair.rank() > kMostRank) return false;
  if (depth < 1 || depth > kMostFeatures || depth % 2 != 0) return false;
  if (cols < 1 || cols > kMostFeatures || cols % 2 != 0) return false;
  const DType type = term.x.dtype(), adapter = pair.shrink.dtype();
  return term.multiply == type && term.y.dtype() == type && pair.expand.dtype() == adapter &&
         (adapter == type || adapter == DType::kFloat32) && pairs_aligned(term.x) &&
         pairs_aligned(term.y);
}

void run_small(const Call& call, const Term& term) {
  const LowRank& pair = term.pair;
  SmallArgs args{};
  args.x = term.x.data(), args.a = pair.shrink.data(), args.b = pair.expand.data();
  args.y = term.y.mutable_data();
  args.h = pair.h.present() ? pair.h.mutable_data_as<float>() : nullptr;
  args.rows = term.x.dim(0), args.x_stride = term.x.stride(0), args.y_stride = term.y.stride(0);
  args.a_row = pair.shrink.stride(0), args.a_col = pair.shrink.stride(1);
  args.b_row = pair.expand.stride(0), args.b_col = pair.expand.stride(1);
  args.depth = static_cast<int>(term.x.dim(1)), args.cols = static_cast<int>(term.y.dim(1));
  args.rank = static_cast<int>(pair.rank());
  args.scaling = pair.scaling;
  args.accumulate = term.accumulate;
  const std::size_t four = 4 * size_of(pair.shrink.dtype());
  args.a_vectors = args.a_col == 1 && args.a_row % 4 == 0 &&
                   reinterpret_cast<std::uintptr_t>(args.a) % four == 0;
  with_type(term.x.dtype(), [&]<class T>(std::type_identity<T>) {
    if (pair.shrink.dtype() == DType::kFloat32) return launch<T, float>(call, args);
    launch<T, T>(call, args);
  });
}

}  // namespace graft::cuda
