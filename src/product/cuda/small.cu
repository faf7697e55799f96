// A pair alone in one launch, for shapes where a launch takes longer than the arithmetic:
//
//     h = x·A        y = s·h·B
//
// A block has a few rows of x, and nothing of another block's: h stays in its shared memory.
//
//            K                 rank                                  N
//     x [ rows of a block ] ·  A   ->  sums of each warp   ->   h   ·  B  ->  y
//
// Each warp has a part of K. All loads of a block are under way before the first is used: what such
// a kernel takes is the latency of one read of memory, two barriers, and the launch. Branches on
// strides are taken around loads, never between them.
//
// Bytes: x and y once, A and B once a block, from L2. In float32 a block has one row while there
// are fewer than multiprocessors, 4 or 32 rows after that; of half types, which multiply in the
// matrix units, 16, and some of the columns. The kernels wait for the kernels before them before
// they read anything (griddepcontrol.wait), so that they may be launched while those end.

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
  bool a_vectors, b_vectors;  // neighbours in a row of A or B are vectors of 16 bytes
  bool float_adapter;         // A and B are float32, whatever x is
  bool whole;                 // see make_row
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

/// Sums each of kCount values over the lanes that differ in the bits from 16 down to `lowest`.
/// While there are two values or more, half of the lanes go on with one half of them, the others
/// with the other. Returns the index of the value that this lane ends with, in values[0]...
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

/// a / b of small numbers, in five instructions of which none waits long: a block that lives for a
/// microsecond has no time for a division.
__device__ inline int quotient(int a, int b) {
  return __float2int_rd(__fdividef(static_cast<float>(a) + 0.5f, static_cast<float>(b)));
}

/// Deals (outer, inner) out to the threads of a block, neighbours along inner: body(outer, step,
/// inner) does outer, outer + step, ... kBatch of them.
template <int kBatch, class Body>
__device__ void deal(int outer, int inner, const Body& body) {
  const int thread = static_cast<int>(threadIdx.x);
  if (inner <= kThreads) {
    const int step = quotient(kThreads, inner), first = quotient(thread, inner);
    if (first >= step) return;
    for (int at = first; at < outer; at += step * kBatch) {
      body(at, step, thread - first * inner);
    }
  } else {
    for (int at = 0; at < outer; at += kBatch) {
      for (int i = thread; i < inner; i += kThreads) body(at, 1, i);
    }
  }
}

/// Starts to bring a matrix (rows, cols) of device memory to shared memory, [row][col] with `ld`
/// elements a row, as T. Vectors of one type are copied asynchronously; else eight loads of a
/// thread are under way at once.
template <class T, class Source>
__device__ void stage(T* to, int ld, const Source* from, std::int64_t row_stride,
                      std::int64_t col_stride, int rows, int cols, bool vectors) {
  constexpr int kBatch = 8, kVector = kPackSize<Source>;
  if (vectors && std::is_same_v<T, Source>) {
    deal<1>(rows, cols / kVector, [&](int row, int, int vector) {
      copy_async(shared_address(to + row * ld + vector * kVector),
                 from + row * row_stride + vector * kVector, 16);
    });
    return;
  }
  if (vectors) {
    deal<kBatch>(rows, cols / kVector, [&](int row, int step, int vector) {
      Pack<Source, kVector> packs[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int at = min(row + i * step, rows - 1);
        packs[i] = *reinterpret_cast<const Pack<Source, kVector>*>(from + at * row_stride +
                                                                   vector * kVector);
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (row + i * step >= rows) break;
        Pack<T, kVector> pack;
#pragma unroll
        for (int j = 0; j < kVector; ++j) {
          pack.values[j] = from_float<T>(to_float(packs[i].values[j]));
        }
        *reinterpret_cast<Pack<T, kVector>*>(to + (row + i * step) * ld + vector * kVector) = pack;
      }
    });
    return;
  }
  choose(col_stride <= row_stride, [&](auto along_cols) {
    constexpr bool kAlong = along_cols.value;
    const std::int64_t outer_stride = kAlong ? row_stride : col_stride;
    const std::int64_t inner_stride = kAlong ? col_stride : row_stride;
    const int outers = kAlong ? rows : cols;
    deal<kBatch>(outers, kAlong ? cols : rows, [&](int outer, int step, int inner) {
      Source values[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int at = min(outer + i * step, outers - 1);
        values[i] = from[at * outer_stride + inner * inner_stride];
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int at = outer + i * step;
        if (at >= outers) break;
        to[kAlong ? at * ld + inner : inner * ld + at] = from_float<T>(to_float(values[i]));
      }
    });
  });
}

// One row a block, float32. Nothing goes through shared memory but the warps' parts of h:
// neighbouring lanes have four ranks each, then neighbours along K, so that a warp reads a stretch
// of A:
//
//     thread + 256·i  =  k · (rank / 4) + quad       k < 512, all loads under way at once
//
// kWhole: A is dense, its rank is kRank, and K and N are whole 512s.
template <int kRank, bool kWhole>
__device__ void make_row(const SmallArgs& args, float (&partial)[kWarps][kRank],
                         float (&h_shared)[kRank]) {
  constexpr int kQuads = kRank / 4, kAtOnce = 512 * kQuads / kThreads;
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / 32, quad = thread % kQuads, first_k = thread / kQuads;
  const std::int64_t row = blockIdx.x;
  const float* const x = static_cast<const float*>(args.x) + row * args.x_stride;
  const int my_col = 2 * thread;

  float2 columns[kRank];  // of B
  const auto load_b = [&](int col) {
    const float* const b = static_cast<const float*>(args.b);
    const auto load = [&](auto vectors) {
#pragma unroll
      for (int r = 0; r < kRank; ++r) {
        const bool here = kWhole || r < args.rank;
        const float* const from = b + (here ? r : 0) * args.b_row + col * args.b_col;
        if constexpr (vectors.value) {
          columns[r] = *reinterpret_cast<const float2*>(from);
        } else {
          columns[r] = make_float2(from[0], from[args.b_col]);
        }
        if (!here) columns[r] = make_float2(0, 0);
      }
    };
    if constexpr (kWhole) {
      load(std::true_type{});
    } else {
      choose(args.b_vectors, load);
    }
  };

  float sums[4] = {};
  const auto multiply = [&](auto vectors) {
    const bool mine = kWhole || 4 * quad < args.rank;
    [[maybe_unused]] const float* const a =
        static_cast<const float*>(args.a) + (mine ? 4 * quad * args.a_col : 0);
    for (int begin = first_k; begin < args.depth; begin += 512) {
      float values[kAtOnce];
      float4 ranks[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int k = begin + i * (kThreads / kQuads);
        if constexpr (kWhole) {
          values[i] = x[k];
          ranks[i] = static_cast<const float4*>(args.a)[k * kQuads + quad];
        } else {
          const bool here = mine && k < args.depth;
          const float* const from = a + (here ? k : 0) * args.a_row;
          const float value = x[here ? k : 0];
          values[i] = here ? value : 0.0f;
          if constexpr (vectors.value) {
            ranks[i] = *reinterpret_cast<const float4*>(from);
          } else {
            ranks[i] =
                make_float4(from[0], from[args.a_col], from[2 * args.a_col], from[3 * args.a_col]);
          }
          if (!here) ranks[i] = make_float4(0, 0, 0, 0);
        }
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        sums[0] = fmaf(values[i], ranks[i].x, sums[0]);
        sums[1] = fmaf(values[i], ranks[i].y, sums[1]);
        sums[2] = fmaf(values[i], ranks[i].z, sums[2]);
        sums[3] = fmaf(values[i], ranks[i].w, sums[3]);
      }
    }
  };
  if (kWhole || my_col < args.cols) load_b(my_col);
  if constexpr (kWhole) {
    multiply(std::true_type{});
  } else {
    choose(args.a_vectors, multiply);
  }
  const int kept = sum_over_lanes(sums, kQuads);
  partial[warp][4 * quad + kept] = sums[0];  // of lanes that have the same, the same
  __syncthreads();
  if (thread < kRank) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) sum += partial[i][thread];
    h_shared[thread] = args.scaling * sum;
    if (args.h != nullptr && thread < args.rank) args.h[row * args.rank + thread] = sum;
  }
  __syncthreads();

  float* const y = static_cast<float*>(args.y) + row * args.y_stride;
  for (int col = my_col; col < args.cols; col += 2 * kThreads) {
    if (col != my_col) load_b(col);
    float2 result = make_float2(0, 0);
#pragma unroll
    for (int r = 0; r < kRank; r += 4) {
      const float4 four = *reinterpret_cast<const float4*>(&h_shared[r]);
      const float h[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        result.x = fmaf(h[i], columns[r + i].x, result.x);
        result.y = fmaf(h[i], columns[r + i].y, result.y);
      }
    }
    auto* const to = reinterpret_cast<float2*>(y + col);
    if (args.accumulate) result.x += to->x, result.y += to->y;
    *to = result;
  }
}

template <int kRank>
__global__ void __launch_bounds__(kThreads) small_row(const __grid_constant__ SmallArgs args) {
  __shared__ __align__(16) float partial[kWarps][kRank];
  __shared__ __align__(16) float h[kRank];
  wait_for_earlier_kernels();
  choose(args.whole, [&](auto whole) { make_row<kRank, whole.value>(args, partial, h); });
}

// Several rows at a time, float32: A and B go to shared memory whole, once a block; x by so many
// rows, of which the next are on their way while these are multiplied. A lane makes four rows ×
// four ranks of h over some of K, and then four columns of half of the rows of y:
//
//     lane = sub · (row runs · quads) + row run · quads + quad       rows: row run + row runs · i
//
// Rows of x are some vectors further apart than they are long, so that those that a warp reads at
// once lie in different banks.
template <int kRows, int kRank>
struct RowsShared {
  static constexpr int kRun = 4, kRowRuns = kRows / kRun, kQuads = kRank / 4;
  static constexpr int kSubs = 32 / (kRowRuns * kQuads);  // lanes that share K

  int x_ld, x_size, a, b, partial, h, size;  // in elements

  __host__ __device__ RowsShared(int depth, int cols)
      : x_ld(depth + 4 * kSubs),
        x_size(kRows * x_ld),
        a(2 * x_size),
        b(a + depth * kRank),
        partial(b + kRank * cols),
        h(partial + kWarps * kRows * kRank),
        size(h + kRows * kRank) {}
};

template <int kRows, int kRank>
__global__ void __launch_bounds__(kThreads, 1) small_rows(const __grid_constant__ SmallArgs args) {
  using Shared = RowsShared<kRows, kRank>;
  constexpr int kRun = Shared::kRun, kRowRuns = Shared::kRowRuns, kQuads = Shared::kQuads;
  constexpr int kSubs = Shared::kSubs;
  constexpr int kMyRows = kRows / 2;  // of y, of a thread: two threads share columns
  extern __shared__ __align__(16) float shared[];
  const Shared at(args.depth, args.cols);
  const float *const a = shared + at.a, *const b = shared + at.b;
  float *const partial = shared + at.partial, *const h = shared + at.h;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int quad = lane % kQuads, row_run = lane / kQuads % kRowRuns;
  const int sub = lane / (kQuads * kRowRuns);
  const std::int64_t step = std::int64_t{gridDim.x} * kRows;
  std::int64_t first = std::int64_t{blockIdx.x} * kRows;
  const auto rows_from = [&](std::int64_t row) {
    return static_cast<int>(min(args.rows - row, std::int64_t{kRows}));
  };
  const auto stage_x = [&](std::int64_t row, float* to) {
    stage(to, at.x_ld, static_cast<const float*>(args.x) + row * args.x_stride, args.x_stride, 1,
          rows_from(row), args.depth, true);
  };
  wait_for_earlier_kernels();

  float *x = shared, *next = shared + at.x_size;
  stage_x(first, x);
  stage(shared + at.a, kRank, static_cast<const float*>(args.a), args.a_row, args.a_col, args.depth,
        args.rank, args.a_vectors);
  copies_commit();
  stage(shared + at.b, args.cols, static_cast<const float*>(args.b), args.b_row, args.b_col,
        args.rank, args.cols, args.b_vectors);
  for (; first < args.rows; first += step) {
    const int rows = rows_from(first);
    copies_commit();  // B the first time, then nothing
    copies_wait<1>();
    __syncthreads();
    if (first + step < args.rows) stage_x(first + step, next);
    copies_commit();

    float sums[kRun * 4] = {};
    if (4 * quad < args.rank) {
#pragma unroll 2
      for (int k = (warp * kSubs + sub) * 4; k < args.depth; k += kWarps * kSubs * 4) {
        float4 values[kRun], ranks[4];
#pragma unroll
        for (int i = 0; i < kRun; ++i) {
          // Of rows that are not there, what lies there: their sums are not used.
          values[i] = *reinterpret_cast<const float4*>(x + (row_run + kRowRuns * i) * at.x_ld + k);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          ranks[j] = *reinterpret_cast<const float4*>(a + (k + j) * kRank + 4 * quad);
        }
#pragma unroll
        for (int i = 0; i < kRun; ++i) {
          const float four[4] = {values[i].x, values[i].y, values[i].z, values[i].w};
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            sums[4 * i] = fmaf(four[j], ranks[j].x, sums[4 * i]);
            sums[4 * i + 1] = fmaf(four[j], ranks[j].y, sums[4 * i + 1]);
            sums[4 * i + 2] = fmaf(four[j], ranks[j].z, sums[4 * i + 2]);
            sums[4 * i + 3] = fmaf(four[j], ranks[j].w, sums[4 * i + 3]);
          }
        }
      }
    }
    // Where there are more lanes than sums, the last of them have the same.
    constexpr int kKept = kRun * 4 / kSubs > 0 ? kRun * 4 / kSubs : 1;
    const int kept = sum_over_lanes(sums, kQuads * kRowRuns);
#pragma unroll
    for (int i = 0; i < kKept; ++i) {
      const int row = row_run + kRowRuns * ((kept + i) / 4), r = 4 * quad + (kept + i) % 4;
      partial[(warp * kRows + row) * kRank + r] = sums[i];
    }
    copies_wait<1>();  // B is here
    __syncthreads();
    for (int i = thread; i < kRows * kRank; i += kThreads) {
      const int row = i / kRank, r = i % kRank;
      float sum = 0;
#pragma unroll
      for (int j = 0; j < kWarps; ++j) sum += partial[j * kRows * kRank + i];
      h[i] = args.scaling * sum;
      if (args.h != nullptr && r < args.rank && row < rows) {
        args.h[(first + row) * args.rank + r] = sum;
      }
    }
    __syncthreads();

    float* const y = static_cast<float*>(args.y) + first * args.y_stride;
    const int first_row = thread / (kThreads / 2) * kMyRows;
    for (int col = thread % (kThreads / 2) * 4; col < args.cols; col += 2 * kThreads) {
      float results[kMyRows][4] = {};
#pragma unroll 2
      for (int r = 0; r < args.rank; r += 4) {
        float4 columns[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          columns[j] = *reinterpret_cast<const float4*>(b + (r + j) * args.cols + col);
        }
#pragma unroll
        for (int row = 0; row < kMyRows; ++row) {
          const float4 ranks = *reinterpret_cast<const float4*>(h + (first_row + row) * kRank + r);
          const float four[4] = {ranks.x, ranks.y, ranks.z, ranks.w};
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            results[row][0] = fmaf(four[j], columns[j].x, results[row][0]);
            results[row][1] = fmaf(four[j], columns[j].y, results[row][1]);
            results[row][2] = fmaf(four[j], columns[j].z, results[row][2]);
            results[row][3] = fmaf(four[j], columns[j].w, results[row][3]);
          }
        }
      }
#pragma unroll
      for (int row = 0; row < kMyRows; ++row) {
        if (first_row + row >= rows) break;
        auto* const to = reinterpret_cast<float4*>(y + (first_row + row) * args.y_stride + col);
        float4 result =
            make_float4(results[row][0], results[row][1], results[row][2], results[row][3]);
        if (args.accumulate) {
          const float4 before = *to;
          result.x += before.x, result.y += before.y, result.z += before.z, result.w += before.w;
        }
        *to = result;
      }
    }
    float* const other = x;
    x = next, next = other;
  }
}

// Half types, 16 rows and some columns a block. x, A and B go to shared memory, in rows that are an
// odd number of 16 bytes long: eight of them, which ldmatrix reads at once, lie in different banks.
// A warp multiplies every eighth step of 16 along K, then every eighth 16 columns of y.
constexpr int kHalfRows = 16;

__host__ __device__ constexpr int odd_vectors(int elements) {  // of 16-bit elements, in elements
  return ((elements + 7) / 8 | 1) * 8;
}

struct HalfShared {
  int x_ld, a_ld, b_ld, x_size, a, b, scaled;  // in elements
  int partial;                                 // in bytes

  __host__ __device__ HalfShared(int depth, int cols)
      : x_ld(odd_vectors((depth + 15) / 16 * 16)),
        a_ld(odd_vectors(kMostRank)),
        b_ld(odd_vectors(cols)),
        x_size(kHalfRows * x_ld),
        a(2 * x_size),
        b(a + (depth + 15) / 16 * 16 * a_ld),
        scaled(b + kMostRank * b_ld),
        partial((scaled + kHalfRows * a_ld) * 2) {}
  std::size_t bytes() const {
    return static_cast<std::size_t>(partial) + sizeof(float) * kWarps * kHalfRows * kMostRank;
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads, 1) small_half(const __grid_constant__ SmallArgs args) {
  extern __shared__ __align__(16) unsigned char memory[];
  const HalfShared at(args.depth, args.block_cols);
  T *x = reinterpret_cast<T*>(memory), *next = x + at.x_size;
  T *const a = x + at.a, *const b = x + at.b, *const scaled = x + at.scaled;
  float* const partial = reinterpret_cast<float*>(memory + at.partial);  // [warp][row][rank]
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int first_col = static_cast<int>(blockIdx.y) * args.block_cols;
  const int cols = min(args.cols - first_col, args.block_cols);
  const std::int64_t step = std::int64_t{gridDim.x} * kHalfRows;
  std::int64_t first = std::int64_t{blockIdx.x} * kHalfRows;
  const auto rows_from = [&](std::int64_t row) {
    return static_cast<int>(min(args.rows - row, std::int64_t{kHalfRows}));
  };
  const auto stage_x = [&](std::int64_t row, T* to) {
    stage(to, at.x_ld, static_cast<const T*>(args.x) + row * args.x_stride, args.x_stride, 1,
          rows_from(row), args.depth, true);
  };
  wait_for_earlier_kernels();

  stage_x(first, x);
  choose(args.float_adapter, [&](auto is_float) {
    using Source = std::conditional_t<is_float.value, float, T>;
    stage(a, at.a_ld, static_cast<const Source*>(args.a), args.a_row, args.a_col, args.depth,
          args.rank, args.a_vectors);
    copies_commit();
    stage(b, at.b_ld, static_cast<const Source*>(args.b) + first_col * args.b_col, args.b_row,
          args.b_col, args.rank, cols, args.b_vectors);
  });
  // Zeros past the depth, which is whole eights, and past the rank: what is multiplied with 0 has
  // to be finite. Columns of A past the rank and rows of x that are not there are not used.
  const T zero = from_float<T>(0.0f);
  if (args.depth % 16 != 0) {
    for (int i = thread; i < 8 * kMostRank; i += kThreads) {
      a[(args.depth + i / kMostRank) * at.a_ld + i % kMostRank] = zero;
    }
    for (int i = thread; i < 2 * 8 * kHalfRows; i += kThreads) {
      x[i / 8 * at.x_ld + args.depth + i % 8] = zero;  // of both
    }
  }
  for (int r = args.rank; r % 16 != 0; ++r) {
    for (int col = thread; col < cols; col += kThreads) b[r * at.b_ld + col] = zero;
  }

  // ldmatrix: lanes 0 to 15 name the rows of the left two 8 × 8 matrices, 16 to 31 of the right
  // two.
  const int matrix_row = lane % 16, matrix_col = lane / 16 * 8;
  const int group = lane / 4, pair = lane % 4 * 2;  // of mma's sums
  for (; first < args.rows; first += step) {
    const int rows = rows_from(first);
    copies_commit();  // B the first time, then nothing
    copies_wait<1>();
    __syncthreads();
    if (first + step < args.rows) stage_x(first + step, next);
    copies_commit();

    float sums[kMostRank / 8][4] = {};
#pragma unroll 2
    for (int k = 16 * warp; k < args.depth; k += 16 * kWarps) {
      std::uint32_t x_step[4];
      ldmatrix(shared_address(x + matrix_row * at.x_ld + k + matrix_col), x_step[0], x_step[1],
               x_step[2], x_step[3]);
#pragma unroll
      for (int r = 0; r < kMostRank; r += 16) {
        if (r >= args.rank) break;
        std::uint32_t two[4];
        ldmatrix_trans(shared_address(a + (k + matrix_row) * at.a_ld + r + matrix_col), two[0],
                       two[1], two[2], two[3]);
        mma<T>(sums[r / 8], x_step, {two[0], two[1]});
        mma<T>(sums[r / 8 + 1], x_step, {two[2], two[3]});
      }
    }
#pragma unroll
    for (int tile = 0; tile < kMostRank / 8; ++tile) {
      if (8 * tile >= args.rank) break;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float* const to =
            partial + (warp * kHalfRows + group + 8 * i) * kMostRank + 8 * tile + pair;
        *reinterpret_cast<float2*>(to) = make_float2(sums[tile][2 * i], sums[tile][2 * i + 1]);
      }
    }
    copies_wait<1>();  // B is here
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kHalfRows * kMostRank / kThreads; ++i) {
      const int element = thread + i * kThreads, row = element / kMostRank, r = element % kMostRank;
      float sum = 0;
#pragma unroll
      for (int j = 0; j < kWarps; ++j) sum += partial[j * kHalfRows * kMostRank + element];
      if (r >= args.rank) sum = 0;  // what lay there
      scaled[row * at.a_ld + r] = from_float<T>(args.scaling * sum);
      if (args.h != nullptr && blockIdx.y == 0 && r < args.rank && row < rows) {
        args.h[(first + row) * args.rank + r] = sum;
      }
    }
    __syncthreads();

    std::uint32_t h[kMostRank / 16][4];
#pragma unroll
    for (int i = 0; i < kMostRank / 16; ++i) {
      ldmatrix(shared_address(scaled + matrix_row * at.a_ld + 16 * i + matrix_col), h[i][0],
               h[i][1], h[i][2], h[i][3]);
    }
    T* const y = static_cast<T*>(args.y) + first * args.y_stride + first_col;
#pragma unroll 2
    for (int col = 16 * warp; col < cols; col += 16 * kWarps) {
      float results[2][4] = {};
#pragma unroll
      for (int i = 0; i < kMostRank / 16; ++i) {
        if (16 * i >= args.rank) break;
        std::uint32_t two[4];
        ldmatrix_trans(shared_address(b + (16 * i + matrix_row) * at.b_ld + col + matrix_col),
                       two[0], two[1], two[2], two[3]);
        mma<T>(results[0], h[i], {two[0], two[1]});
        mma<T>(results[1], h[i], {two[2], two[3]});
      }
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
        if (col + 8 * tile >= cols) continue;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int row = group + 8 * i;
          if (row >= rows) continue;
          T* const to = y + row * args.y_stride + col + 8 * tile + pair;
          float values[2] = {results[tile][2 * i], results[tile][2 * i + 1]};
          Pack<T, 2> pack;
          if (args.accumulate) {
            pack = *reinterpret_cast<const Pack<T, 2>*>(to);
            values[0] += to_float(pack.values[0]), values[1] += to_float(pack.values[1]);
          }
          pack.values[0] = from_float<T>(values[0]), pack.values[1] = from_float<T>(values[1]);
          *reinterpret_cast<Pack<T, 2>*>(to) = pack;
        }
      }
    }
    T* const other = x;
    x = next, next = other;
  }
}

constexpr std::int64_t kFewRows = 1056;  // 4 rows at a time, then 16
constexpr std::int64_t kMostRows = 16384, kMostFeatures = 4096;

bool is_vectors(const ConstTensorView& view) {
  const std::size_t size = size_of(view.dtype());
  const auto vector = static_cast<std::int64_t>(16 / size);
  return view.stride(1) == 1 && view.stride(0) % vector == 0 && view.dim(1) % vector == 0 &&
         reinterpret_cast<std::uintptr_t>(view.data()) % 16 == 0;
}

int columns_of_a_block(std::int64_t rows, int cols, const DeviceFacts& facts) {
  const std::int64_t row_blocks = (rows + kHalfRows - 1) / kHalfRows;
  const std::int64_t parts =
      std::clamp<std::int64_t>(facts.multiprocessors / row_blocks, 1, (cols + 63) / 64);
  return static_cast<int>(((cols + parts - 1) / parts + 63) / 64 * 64);
}

std::size_t rows_bytes(std::int64_t rows, int depth, int cols, int rank) {
  const auto size = [&]<int kRank>(std::integral_constant<int, kRank>) {
    return rows <= kFewRows ? RowsShared<4, kRank>(depth, cols).size
                            : RowsShared<16, kRank>(depth, cols).size;
  };
  const int elements = rank <= 8    ? size(std::integral_constant<int, 8>{})
                       : rank <= 16 ? size(std::integral_constant<int, 16>{})
                                    : size(std::integral_constant<int, 32>{});
  return static_cast<std::size_t>(elements) * sizeof(float);
}

std::size_t shared_bytes(DType type, std::int64_t rows, int depth, int cols, int rank,
                         const DeviceFacts& facts) {
  if (type != DType::kFloat32) {
    return HalfShared(depth, columns_of_a_block(rows, cols, facts)).bytes();
  }
  return rows <= facts.multiprocessors ? 0 : rows_bytes(rows, depth, cols, rank);
}

// So many rows at a time; as many blocks as run at once, where A and B are kept.
Launch blocks_of(const Call& call, const SmallArgs& args, std::int64_t rows, std::size_t bytes) {
  std::int64_t blocks = (args.rows + rows - 1) / rows;
  if (rows > 4) blocks = std::min<std::int64_t>(blocks, call.facts().multiprocessors);
  return {.grid = {static_cast<unsigned>(blocks),
                   static_cast<unsigned>((args.cols + args.block_cols - 1) / args.block_cols), 1},
          .block = kThreads,
          .shared_bytes = bytes,
          .overlaps = true};
}

template <int kRank>
void launch_float(const Call& call, SmallArgs args, std::size_t bytes) {
  args.whole = args.rank == kRank && args.a_vectors && args.a_row == kRank && args.b_vectors &&
               args.depth % 512 == 0 && args.cols % 512 == 0;
  if (args.rows <= call.facts().multiprocessors) {
    call.launch(blocks_of(call, args, 1, 0), small_row<kRank>, args);
  } else if (args.rows <= kFewRows) {
    call.launch(blocks_of(call, args, 4, bytes), small_rows<4, kRank>, args);
  } else {
    call.launch(blocks_of(call, args, 16, bytes), small_rows<16, kRank>, args);
  }
}

}  // namespace

bool fits_small(const Term& term, const DeviceFacts& facts) {
  const LowRank& pair = term.pair;
  if (term.w.present() || term.bias.present() || !pair.present() || !term.y.present()) return false;
  if (!term.outer_products.empty() || pair.input_dropout || pair.output_dropout) return false;
  const std::int64_t rows = term.x.dim(0), depth = term.x.dim(1), cols = term.y.dim(1);
  if (rows < 1 || rows > kMostRows || pair.rank() % 4 != 0 || pair.rank() > kMostRank) return false;
  if (depth < 8 || depth > kMostFeatures || depth % 8 != 0) return false;
  if (cols < 8 || cols > kMostFeatures || cols % 8 != 0) return false;
  const DType type = term.x.dtype(), adapter = pair.shrink.dtype();
  return term.multiply == type && term.y.dtype() == type && pair.expand.dtype() == adapter &&
         (adapter == type || adapter == DType::kFloat32) && is_vectors(term.x) &&
         is_vectors(term.y) &&
         shared_bytes(type, rows, static_cast<int>(depth), static_cast<int>(cols),
                      static_cast<int>(pair.rank()), facts) <= facts.shared_bytes;
}

void run_small(const Call& call, const Term& term) {
  const LowRank& pair = term.pair;
  const DType type = term.x.dtype();
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
  args.a_vectors = is_vectors(pair.shrink), args.b_vectors = is_vectors(pair.expand);
  args.float_adapter = pair.shrink.dtype() == DType::kFloat32;
  const std::size_t bytes =
      shared_bytes(type, args.rows, args.depth, args.cols, args.rank, call.facts());
  if (type == DType::kFloat32) {
    if (args.rank <= 8) return launch_float<8>(call, args, bytes);
    if (args.rank <= 16) return launch_float<16>(call, args, bytes);
    return launch_float<32>(call, args, bytes);
  }
  args.block_cols = columns_of_a_block(args.rows, args.cols, call.facts());
  const Launch how = blocks_of(call, args, kHalfRows, bytes);
  if (type == DType::kFloat16) return call.launch(how, small_half<__half>, args);
  call.launch(how, small_half<__nv_bfloat16>, args);
}

}  // namespace graft::cuda
