// A pair alone in one launch, for shapes where a launch takes longer than the arithmetic:
//
//     h = x·A        y = s·h·B
//
// A block has a few rows of x, and nothing of another block's: h stays in its shared memory.
//
//            K                 rank                                  N
//     x [ rows of a block ] ·  A   ->  sums of each warp   ->   h   ·  B  ->  y
//
// Each warp has a part of K, all of whose loads are under way before the first is used: what such a
// kernel takes is the latency of two reads of memory (x and A; B comes beside them), a barrier, and
// the launch. Branches on strides are taken around the loops, never between their loads.
//
// Bytes: x and y once, A and B once a block, from L2. A row a block makes the most of a device that
// a few rows can't fill; more rows a block read A and B less often. Half types multiply in the
// matrix units, 16 rows a block. The kernels wait for the kernels before them before they read
// anything (griddepcontrol.wait), so that they may be launched while those end.

#include <algorithm>

#include "backend/cuda/call.h"
#include "backend/cuda/element.cuh"
#include "backend/cuda/mma.cuh"
#include "product/cuda/paths.h"

namespace graft::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kMostRank = 32;

struct SmallArgs {
  const void *x, *a, *b;
  void* y;
  float* h;  // null: not wanted
  std::int64_t rows, x_stride, y_stride;
  std::int64_t a_row, a_col, b_row, b_col;
  int depth, cols, rank;
  int block_cols;  // of y that a block makes
  float scaling;
  bool accumulate;
  bool a_vectors, b_vectors;  // neighbours are one aligned load: see the kernels
};

/// `body(constant<bool>)`, so that a choice is made once, around all that depends on it.
template <class Body>
__device__ void choose(bool choice, const Body& body) {
  if (choice) {
    body(std::true_type{});
  } else {
    body(std::false_type{});
  }
}

/// Sums each of kCount values over the lanes that differ in the bits from kFrom down to `to`. While
/// there are two values or more, half of the lanes go on with one half of them, the others with the
/// other. Returns the index of the value that this lane ends with, in values[0]...
template <int kCount>
__device__ int sum_over_lanes(float (&values)[kCount], int lowest) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int first = 0;
#pragma unroll
  for (int step = 0; step < 5; ++step) {
    const int offset = 16 >> step, half = kCount >> (step + 1);
    if (offset < lowest) break;
    if (half > 0) {
      const bool upper = (lane & offset) != 0;
#pragma unroll
      for (int i = 0; i < kCount / 2; ++i) {
        if (i >= half) break;
        const float mine = upper ? values[i + half] : values[i];
        const float theirs = upper ? values[i] : values[i + half];
        values[i] = mine + __shfl_xor_sync(~0u, theirs, offset);
      }
      if (upper) first += half;
    } else {
      values[0] += __shfl_xor_sync(~0u, values[0], offset);
    }
  }
  return first;
}

// float32: a lane makes kRun rows × 4 ranks of h over some of K. In a warp, neighbouring lanes have
// the next four ranks, then the next kRun rows; the lanes that are left share K:
//
//     lane = sub · (row runs · quads) + row run · quads + quad

/// The slice of A that a lane multiplies: four ranks at depth k, or 0 past the rank.
template <bool kVectors>
__device__ float4 load_ranks(const float* a, const SmallArgs& args, int k) {
  const float* from = a + k * args.a_row;
  if constexpr (kVectors) {
    return *reinterpret_cast<const float4*>(from);
  } else {
    return make_float4(from[0], from[args.a_col], from[2 * args.a_col], from[3 * args.a_col]);
  }
}

template <int kRows, int kRank>
__global__ void __launch_bounds__(kThreads, 2) small_delta(const __grid_constant__ SmallArgs args) {
  constexpr int kRun = kRows >= 4 ? 4 : 1, kRowRuns = kRows / kRun, kQuads = kRank / 4;
  constexpr int kSubs = 32 / (kRowRuns * kQuads);  // lanes that share K
  constexpr int kStep = kRows == 16 ? 4 : 1;       // neighbours along K of a lane: one load of x
  constexpr int kColRun = kRows == 16 ? 4 : 2;     // columns of y of a thread
  constexpr int kRowGroups = kRows == 16 ? 2 : 1;  // threads that share columns
  constexpr int kMyRows = kRows / kRowGroups;
  constexpr int kChunk = kRows == 16 ? 8 : kRank;  // ranks of B in registers at once
  __shared__ __align__(16) float partial[kWarps][kRows][kRank];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int quad = lane % kQuads, row_run = lane / kQuads % kRowRuns;
  const int sub = lane / (kQuads * kRowRuns);
  const std::int64_t first = std::int64_t{blockIdx.x} * kRows;
  wait_for_earlier_kernels();

  // B of some ranks and this thread's columns; the rank and the columns are whole vectors.
  const float* const b = static_cast<const float*>(args.b);
  const auto load_b = [&](int col, int first_rank, float(&to)[kChunk][kColRun]) {
    choose(args.b_vectors, [&](auto along_cols) {
#pragma unroll
      for (int r = 0; r < kChunk; ++r) {
        const bool here = first_rank + r < args.rank;
        const float* from = b + (here ? first_rank + r : 0) * args.b_row + col * args.b_col;
        if constexpr (along_cols.value) {
          const auto pack = *reinterpret_cast<const Pack<float, kColRun>*>(from);
#pragma unroll
          for (int j = 0; j < kColRun; ++j) to[r][j] = here ? pack.values[j] : 0.0f;
        } else {
#pragma unroll
          for (int j = 0; j < kColRun; ++j) to[r][j] = here ? from[j * args.b_col] : 0.0f;
        }
      }
    });
  };
  const int my_col = static_cast<int>(threadIdx.x) / kRowGroups * kColRun;
  float b_first[kChunk][kColRun];
  if (kRows < 16 && my_col < args.cols) load_b(my_col, 0, b_first);

  float sums[kRun * 4] = {};
  if (4 * quad < args.rank) {
    const float* const a = static_cast<const float*>(args.a) + 4 * quad * args.a_col;
    const float* x[kRun];
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      const std::int64_t row = min(first + row_run * kRun + i, args.rows - 1);
      x[i] = static_cast<const float*>(args.x) + row * args.x_stride;
    }
    choose(args.a_vectors, [&](auto vectors) {
      constexpr int kUnroll = kStep == 4 ? 2 : kRows == 1 ? 8 : 4;
#pragma unroll kUnroll
      for (int k = (warp * kSubs + sub) * kStep; k < args.depth; k += kWarps * kSubs * kStep) {
        Pack<float, kStep> values[kRun];
        float4 ranks[kStep];
#pragma unroll
        for (int i = 0; i < kRun; ++i) {
          values[i] = *reinterpret_cast<const Pack<float, kStep>*>(x[i] + k);
        }
#pragma unroll
        for (int j = 0; j < kStep; ++j) {
          ranks[j] = load_ranks<vectors.value>(a, args, k + j);
        }
#pragma unroll
        for (int j = 0; j < kStep; ++j) {
#pragma unroll
          for (int i = 0; i < kRun; ++i) {
            const float value = values[i].values[j];
            sums[4 * i] = fmaf(value, ranks[j].x, sums[4 * i]);
            sums[4 * i + 1] = fmaf(value, ranks[j].y, sums[4 * i + 1]);
            sums[4 * i + 2] = fmaf(value, ranks[j].z, sums[4 * i + 2]);
            sums[4 * i + 3] = fmaf(value, ranks[j].w, sums[4 * i + 3]);
          }
        }
      }
    });
  }
  // The lanes that shared K have a part of the sums each; where there are more lanes than sums, the
  // last of them have the same.
  constexpr int kKept = kRun * 4 / kSubs > 0 ? kRun * 4 / kSubs : 1;
  const int kept = sum_over_lanes(sums, kQuads * kRowRuns);
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    const int at = kept + i;
    partial[warp][row_run * kRun + at / 4][4 * quad + at % 4] = sums[i];
  }
  __syncthreads();

  // h: of one row, every thread adds up the warps' parts for itself; else each a few elements.
  const auto sum_warps = [&](int row, int r) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) sum += partial[i][row][r];
    return sum;
  };
  if constexpr (kRows == 1) {
    if (args.h != nullptr && static_cast<int>(threadIdx.x) < args.rank) {
      args.h[first * args.rank + threadIdx.x] = sum_warps(0, static_cast<int>(threadIdx.x));
    }
  } else {
    for (int at = static_cast<int>(threadIdx.x); at < kRows * kRank; at += kThreads) {
      const int row = at / kRank, r = at % kRank;
      const float sum = sum_warps(row, r);
      partial[0][row][r] = args.scaling * sum;
      if (args.h != nullptr && r < args.rank && first + row < args.rows) {
        args.h[(first + row) * args.rank + r] = sum;
      }
    }
    __syncthreads();
  }

  float* const y = static_cast<float*>(args.y);
  const int first_row = static_cast<int>(threadIdx.x) % kRowGroups * kMyRows;
  for (int col = my_col; col < args.cols; col += kThreads / kRowGroups * kColRun) {
    float results[kMyRows][kColRun] = {};
#pragma unroll
    for (int chunk = 0; chunk < kRank; chunk += kChunk) {
      if (kRows == 16 || col != my_col) load_b(col, chunk, b_first);
#pragma unroll
      for (int row = 0; row < kMyRows; ++row) {
#pragma unroll
        for (int r = 0; r < kChunk; r += 4) {
          float4 h = *reinterpret_cast<const float4*>(&partial[0][first_row + row][chunk + r]);
          if constexpr (kRows == 1) {
#pragma unroll
            for (int i = 1; i < kWarps; ++i) {
              const float4 more = *reinterpret_cast<const float4*>(&partial[i][0][r]);
              h.x += more.x, h.y += more.y, h.z += more.z, h.w += more.w;
            }
            h.x *= args.scaling, h.y *= args.scaling, h.z *= args.scaling, h.w *= args.scaling;
          }
#pragma unroll
          for (int j = 0; j < kColRun; ++j) {
            float& result = results[row][j];
            result = fmaf(h.x, b_first[r][j], result);
            result = fmaf(h.y, b_first[r + 1][j], result);
            result = fmaf(h.z, b_first[r + 2][j], result);
            result = fmaf(h.w, b_first[r + 3][j], result);
          }
        }
      }
    }
#pragma unroll
    for (int row = 0; row < kMyRows; ++row) {
      const std::int64_t at = first + first_row + row;
      if (at >= args.rows) break;
      auto* const to = reinterpret_cast<Pack<float, kColRun>*>(y + at * args.y_stride + col);
      Pack<float, kColRun> pack{};
      if (args.accumulate) pack = *to;
#pragma unroll
      for (int j = 0; j < kColRun; ++j) pack.values[j] += results[row][j];
      *to = pack;
    }
  }
}

// Half types. mma.m16n8k16 leaves open which depths are the 16 of a step, as long as both operands
// take the same: lane 4g + q takes eight neighbours, 8q to 8q + 7 of 32, for two steps,
//
//     step s:  a, b: registers of (8q + 4s, + 1) and (8q + 4s + 2, + 3)
//
// which is one load of 16 bytes of x, and of A and B where their depth lies together.

/// Eight neighbours along the depth, rounded to T, of one column of mma's operand b: registers 2s
/// and 2s + 1 are of step s. The first `here` of them; the others, of 0 or of all eight if they are
/// vectors, are 0.
template <class T, class Source, bool kVectors>
__device__ void load_eight(const Source* from, std::int64_t stride, int here,
                           std::uint32_t (&to)[4]) {
  Pack<Source, 8> raw;
  if constexpr (kVectors) {
    raw = *reinterpret_cast<const Pack<Source, 8>*>(from);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) raw.values[i] = from[i < here ? i * stride : 0];
  }
  Pack<T, 8> eight;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const bool zero = kVectors ? here <= 0 : i >= here;
    if constexpr (std::is_same_v<T, Source>) {
      eight.values[i] = zero ? from_float<T>(0.0f) : raw.values[i];
    } else {
      eight.values[i] = from_float<T>(zero ? 0.0f : to_float(raw.values[i]));
    }
  }
  const auto four = *reinterpret_cast<const uint4*>(&eight);
  to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
}

template <class T, class AB, int kRank>
__global__ void __launch_bounds__(kThreads, 2)
    small_delta_half(const __grid_constant__ SmallArgs args) {
  constexpr int kRows = 16, kRankTiles = kRank / 8, kTilesAtOnce = 4;
  constexpr int kDepths = 32;  // of two steps
  __shared__ __align__(16) float partial[kWarps][kRows][kRank + 4];
  __shared__ __align__(16) T scaled[kRows][kDepths + 8];  // s·h, 0 past the rank
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int group = lane / 4, eight = lane % 4 * 8;
  const std::int64_t first = std::int64_t{blockIdx.x} * kRows;
  const AB* const a = static_cast<const AB*>(args.a);
  const AB* const b = static_cast<const AB*>(args.b);
  wait_for_earlier_kernels();

  // B of up to four tiles of eight columns, every eighth tile: a depth of 32 ranks.
  const int first_col = static_cast<int>(blockIdx.y) * args.block_cols;
  const int last_col = min(args.cols, first_col + args.block_cols);
  const int ranks = args.rank - eight;  // that this lane has
  const auto load_b = [&](int col, std::uint32_t(&to)[kTilesAtOnce][4]) {
    choose(args.b_vectors, [&](auto vectors) {
#pragma unroll
      for (int tile = 0; tile < kTilesAtOnce; ++tile) {
        const int at = min(col + tile * 8 * kWarps + group, args.cols - 1);
        load_eight<T, AB, vectors.value>(b + (ranks > 0 ? eight : 0) * args.b_row + at * args.b_col,
                                         args.b_row, ranks, to[tile]);
      }
    });
  };
  std::uint32_t b_tiles[kTilesAtOnce][4];
  load_b(first_col + 8 * warp, b_tiles);

  float sums[kRankTiles][4] = {};
  const T* x[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const std::int64_t row = min(first + group + 8 * i, args.rows - 1);
    x[i] = static_cast<const T*>(args.x) + row * args.x_stride;
  }
  choose(args.a_vectors, [&](auto vectors) {
#pragma unroll 2
    for (int k = kDepths * warp + eight; k < args.depth + eight; k += kDepths * kWarps) {
      // The depth is whole eights; past it, x and A are 0.
      const bool here = k < args.depth;
      const int at = here ? k : 0;
      uint4 rows[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) rows[i] = *reinterpret_cast<const uint4*>(x[i] + at);
      std::uint32_t operands[kRankTiles][4];
#pragma unroll
      for (int tile = 0; tile < kRankTiles; ++tile) {
        const int r = min(8 * tile + group, args.rank - 1);  // past the rank, sums are not used
        load_eight<T, AB, vectors.value>(a + at * args.a_row + r * args.a_col, args.a_row,
                                         here ? 8 : 0, operands[tile]);
      }
      if (!here) rows[0] = rows[1] = make_uint4(0, 0, 0, 0);
#pragma unroll
      for (int tile = 0; tile < kRankTiles; ++tile) {
        mma<T>(sums[tile], {rows[0].x, rows[1].x, rows[0].y, rows[1].y},
               {operands[tile][0], operands[tile][1]});
        mma<T>(sums[tile], {rows[0].z, rows[1].z, rows[0].w, rows[1].w},
               {operands[tile][2], operands[tile][3]});
      }
    }
  });
#pragma unroll
  for (int tile = 0; tile < kRankTiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      *reinterpret_cast<float2*>(&partial[warp][group + 8 * i][8 * tile + lane % 4 * 2]) =
          make_float2(sums[tile][2 * i], sums[tile][2 * i + 1]);
    }
  }
  __syncthreads();
  for (int at = static_cast<int>(threadIdx.x); at < kRows * kDepths; at += kThreads) {
    const int row = at / kDepths, r = at % kDepths;
    float sum = 0;
    if (r < args.rank) {
#pragma unroll
      for (int i = 0; i < kWarps; ++i) sum += partial[i][row][r];
      if (args.h != nullptr && blockIdx.y == 0 && first + row < args.rows) {
        args.h[(first + row) * args.rank + r] = sum;
      }
    }
    scaled[row][r] = from_float<T>(args.scaling * sum);
  }
  __syncthreads();

  uint4 rows[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    rows[i] = *reinterpret_cast<const uint4*>(&scaled[group + 8 * i][eight]);
  }
  T* const y = static_cast<T*>(args.y);
  for (int col = first_col + 8 * warp; col < last_col; col += kTilesAtOnce * 8 * kWarps) {
    if (col != first_col + 8 * warp) load_b(col, b_tiles);
#pragma unroll
    for (int tile = 0; tile < kTilesAtOnce; ++tile) {
      const int at = col + tile * 8 * kWarps + lane % 4 * 2;
      float results[4] = {};
      mma<T>(results, {rows[0].x, rows[1].x, rows[0].y, rows[1].y},
             {b_tiles[tile][0], b_tiles[tile][1]});
      mma<T>(results, {rows[0].z, rows[1].z, rows[0].w, rows[1].w},
             {b_tiles[tile][2], b_tiles[tile][3]});
      if (at >= last_col) continue;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const std::int64_t row = first + group + 8 * i;
        if (row >= args.rows) continue;
        auto* const to = reinterpret_cast<Pack<T, 2>*>(y + row * args.y_stride + at);
        float values[2] = {results[2 * i], results[2 * i + 1]};
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

// Rows of a block in float32: one while that fills the device, then so many that A and B are not
// what is read most.
constexpr std::int64_t kOneRow = 264, kFourRows = 1056;
constexpr std::int64_t kMostRows = 16384, kMostFeatures = 4096;
constexpr int kLeastBlockCols = 256;  // of half types

// Vectors of 16 bytes along `axis`.
bool vectors_along(const ConstTensorView& view, int axis) {
  const std::size_t size = size_of(view.dtype());
  return view.stride(axis) == 1 &&
         view.stride(1 - axis) % static_cast<std::int64_t>(16 / size) == 0 &&
         reinterpret_cast<std::uintptr_t>(view.data()) % 16 == 0;
}

Launch blocks_of(const SmallArgs& args, std::int64_t rows) {
  return {.grid = {static_cast<unsigned>((args.rows + rows - 1) / rows),
                   static_cast<unsigned>((args.cols + args.block_cols - 1) / args.block_cols), 1},
          .block = kThreads,
          .overlaps = true};
}

template <int kRank>
void launch_float(const Call& call, const SmallArgs& args) {
  if (args.rows <= kOneRow) {
    call.launch(blocks_of(args, 1), small_delta<1, kRank>, args);
  } else if (args.rows <= kFourRows) {
    call.launch(blocks_of(args, 4), small_delta<4, kRank>, args);
  } else {
    call.launch(blocks_of(args, 16), small_delta<16, kRank>, args);
  }
}

template <class T, class AB>
void launch_half(const Call& call, SmallArgs args) {
  const std::int64_t row_blocks = (args.rows + 15) / 16;
  if (row_blocks < call.facts().multiprocessors) args.block_cols = kLeastBlockCols;
  if (args.rank <= 16) {
    call.launch(blocks_of(args, 16), small_delta_half<T, AB, 16>, args);
  } else {
    call.launch(blocks_of(args, 16), small_delta_half<T, AB, 32>, args);
  }
}

}  // namespace

bool fits_small(const Term& term) {
  const LowRank& pair = term.pair;
  if (term.w.present() || term.bias.present() || !pair.present() || !term.y.present()) return false;
  if (!term.outer_products.empty() || pair.input_dropout || pair.output_dropout) return false;
  const std::int64_t rows = term.x.dim(0), depth = term.x.dim(1), cols = term.y.dim(1);
  if (rows < 1 || rows > kMostRows || pair.rank() % 4 != 0 || pair.rank() > kMostRank) return false;
  if (depth < 8 || depth > kMostFeatures || depth % 8 != 0) return false;
  if (cols < 8 || cols > kMostFeatures || cols % 8 != 0) return false;
  const DType type = term.x.dtype(), adapter = pair.shrink.dtype();
  return term.multiply == type && term.y.dtype() == type && pair.expand.dtype() == adapter &&
         (adapter == type || adapter == DType::kFloat32) && vectors_along(term.x, 1) &&
         vectors_along(term.y, 1);
}

void run_small(const Call& call, const Term& term) {
  const LowRank& pair = term.pair;
  const bool half = term.x.dtype() != DType::kFloat32;
  SmallArgs args{};
  args.x = term.x.data(), args.a = pair.shrink.data(), args.b = pair.expand.data();
  args.y = term.y.mutable_data();
  args.h = pair.h.present() ? pair.h.mutable_data_as<float>() : nullptr;
  args.rows = term.x.dim(0), args.x_stride = term.x.stride(0), args.y_stride = term.y.stride(0);
  args.a_row = pair.shrink.stride(0), args.a_col = pair.shrink.stride(1);
  args.b_row = pair.expand.stride(0), args.b_col = pair.expand.stride(1);
  args.depth = static_cast<int>(term.x.dim(1)), args.cols = static_cast<int>(term.y.dim(1));
  args.rank = static_cast<int>(pair.rank());
  args.block_cols = args.cols;
  args.scaling = pair.scaling;
  args.accumulate = term.accumulate;
  // Of float32, ranks of A and columns of B; of half types, eight of either's depth.
  args.a_vectors = vectors_along(pair.shrink, half ? 0 : 1);
  args.b_vectors = vectors_along(pair.expand, half ? 0 : 1) && (!half || args.rank % 8 == 0);
  with_type(term.x.dtype(), [&]<class T>(std::type_identity<T>) {
    if constexpr (std::is_same_v<T, float>) {
      if (args.rank <= 8) return launch_float<8>(call, args);
      if (args.rank <= 16) return launch_float<16>(call, args);
      launch_float<32>(call, args);
    } else {
      if (pair.shrink.dtype() == DType::kFloat32) return launch_half<T, float>(call, args);
      launch_half<T, T>(call, args);
    }
  });
}

}  // namespace graft::cuda
