#pragma once

#include <cstdint>
#include <type_traits>

#include "backend/cuda/element.cuh"
#include "backend/cuda/mma.cuh"

// What the kernels of small.cu share: their arguments, sums over lanes, and the ways of a matrix to
// shared memory.

namespace graft::cuda::small {

constexpr int kRowThreads = 256, kRowWarps = kRowThreads / 32;  // of a block with one row
constexpr int kThreads = 512, kWarps = kThreads / 32;           // of the others
constexpr int kMostRank = 32;

struct SmallArgs {
  const void *x, *a, *b;
  void* y;
  float* h;  // null: not wanted
  std::int64_t rows, x_stride, y_stride;
  std::int64_t a_row, a_col, b_row, b_col;
  int depth, cols, rank;
  int block_cols;  // of y that a block makes
  int buffers;     // of rows of x: one where a block has no others to go on with
  float scaling;
  bool accumulate;
  bool a_vectors, b_vectors;  // rows of A or B are vectors of 16 bytes
  bool float_adapter;         // A and B are float32, whatever x is
  int log_quads;              // of float32 rows: 4 · 2^log_quads ranks, the rank or more
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

/// Starts to copy a matrix (rows, cols), whose rows are vectors of 16 bytes, to shared memory,
/// [row][col] with `ld` elements a row.
template <class T>
__device__ void copy_matrix(T* to, int ld, const T* from, std::int64_t row_stride, int rows,
                            int cols) {
  constexpr int kVector = kPackSize<T>;
  const int vectors = cols / kVector, thread = static_cast<int>(threadIdx.x);
  const int row_step = quotient(kThreads, vectors), col_step = kThreads - row_step * vectors;
  int row = quotient(thread, vectors), col = thread - row * vectors;
  if (col_step == 0) {  // a thread stays in its column
    std::uint32_t at = shared_address(to + row * ld + col * kVector);
    const std::uint32_t at_step = static_cast<std::uint32_t>(row_step * ld * sizeof(T));
    from += row * row_stride + col * kVector;
    const std::int64_t from_step = row_step * row_stride;
#pragma unroll 4
    for (; row < rows; row += row_step) {
      copy_async(at, from, 16);
      at += at_step, from += from_step;
    }
    return;
  }
#pragma unroll 1
  while (row < rows) {
    copy_async(shared_address(to + row * ld + col * kVector),
               from + row * row_stride + col * kVector, 16);
    row += row_step, col += col_step;
    if (col >= vectors) col -= vectors, ++row;
  }
}

/// The same of float32 as T, through registers: of a thread, four loads are under way at once.
template <class T>
__device__ void convert_matrix(T* to, int ld, const float* from, std::int64_t row_stride, int rows,
                               int cols) {
  constexpr int kBatch = 4;
  deal<kBatch>(rows, cols / 4, [&](int row, int step, int vector) {
    float4 loaded[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int at = min(row + i * step, rows - 1);
      loaded[i] = *reinterpret_cast<const float4*>(from + at * row_stride + 4 * vector);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (row + i * step >= rows) break;
      Pack<T, 4> pack;
      pack.values[0] = from_float<T>(loaded[i].x), pack.values[1] = from_float<T>(loaded[i].y);
      pack.values[2] = from_float<T>(loaded[i].z), pack.values[3] = from_float<T>(loaded[i].w);
      *reinterpret_cast<Pack<T, 4>*>(to + (row + i * step) * ld + 4 * vector) = pack;
    }
  });
}

/// The same of a matrix of any strides and type: of a thread, eight loads are under way at once.
template <class T, class Source>
__device__ void load_matrix(T* to, int ld, const Source* from, std::int64_t row_stride,
                            std::int64_t col_stride, int rows, int cols) {
  constexpr int kBatch = 8;
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

}  // namespace graft::cuda::small
