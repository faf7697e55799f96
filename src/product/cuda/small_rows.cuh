#pragma once

#include "product/cuda/small.cuh"

namespace graft::cuda::small {

// Several rows at a time, float32: A and B go to shared memory whole, once a block; x by so many
// rows, of which the next are on their way while these are multiplied. A lane makes four rows ×
// four ranks of h over some of K, and then four columns of half of the rows of y:
//
//     lane = sub · (row runs · quads) + row run · quads + quad       rows: row run + row runs · i
//
// Rows of x are some vectors further apart than they are long, so that those that a warp reads at
// once lie in different banks.
template <int kRows>
struct RowsShared {
  static constexpr int kRun = 4, kRowRuns = kRows / kRun;

  int quads, subs, ranks;                    // lanes of ranks; that share K; padded rank
  int x_ld, x_size, a, b, partial, h, size;  // in elements

  __host__ __device__ RowsShared(int depth, int cols, int log_quads, int buffers)
      : quads(1 << log_quads),
        subs((32 / kRowRuns) >> log_quads),
        ranks(4 * quads),
        x_ld(depth + 4 * subs),
        x_size(kRows * x_ld),
        a(buffers * x_size),
        b(a + depth * ranks),
        partial(b + ranks * cols),
        h(partial + kWarps * kRows * ranks),
        size(h + kRows * ranks) {}
};

// kWhole: A and B are copied in vectors.
template <int kRows, bool kWhole>
__global__ void __launch_bounds__(kThreads, 1) small_rows(const __grid_constant__ SmallArgs args) {
  using Shared = RowsShared<kRows>;
  constexpr int kRun = Shared::kRun, kRowRuns = Shared::kRowRuns;
  constexpr int kColThreads = 128;  // with four columns of y each; the others have other rows
  constexpr int kMyRows = kRows / (kThreads / kColThreads);
  extern __shared__ __align__(16) float shared[];
  const Shared at(args.depth, args.cols, args.log_quads, args.buffers);
  const float *const a = shared + at.a, *const b = shared + at.b;
  float *const partial = shared + at.partial, *const h = shared + at.h;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int quad = lane & (at.quads - 1), row_run = lane >> args.log_quads & (kRowRuns - 1);
  const int sub = (lane >> args.log_quads) / kRowRuns;
  const std::int64_t step = std::int64_t{gridDim.x} * kRows;
  std::int64_t first = std::int64_t{blockIdx.x} * kRows;
  const auto rows_from = [&](std::int64_t row) {
    return static_cast<int>(min(args.rows - row, std::int64_t{kRows}));
  };
  const auto copy_x = [&](std::int64_t row, float *to) {
    copy_matrix(to, at.x_ld, static_cast<const float *>(args.x) + row * args.x_stride,
                args.x_stride, rows_from(row), args.depth);
  };
  wait_for_earlier_kernels();

  float *x = shared, *next = shared + at.x_size;
  const float *const a_from = static_cast<const float *>(args.a), *const b_from =
                                                                      static_cast<const float *>(
                                                                          args.b);
  copy_x(first, x);
  if constexpr (kWhole) {
    copy_matrix(shared + at.a, at.ranks, a_from, args.a_row, args.depth, args.rank);
    copies_commit();
    copy_matrix(shared + at.b, args.cols, b_from, args.b_row, args.rank, args.cols);
  } else {
    copies_commit();
    load_matrix(shared + at.a, at.ranks, a_from, args.a_row, args.a_col, args.depth, args.rank);
    load_matrix(shared + at.b, args.cols, b_from, args.b_row, args.b_col, args.rank, args.cols);
  }
  for (; first < args.rows; first += step) {
    const int rows = rows_from(first);
    copies_commit();  // B the first time, then nothing
    copies_wait<1>();
    __syncthreads();
    if (first + step < args.rows) copy_x(first + step, next);
    copies_commit();

    float sums[kRun * 4] = {};
    if (4 * quad < args.rank) {
#pragma unroll 2
      for (int k = (warp * at.subs + sub) * 4; k < args.depth; k += kWarps * at.subs * 4) {
        float4 values[kRun], ranks[4];
#pragma unroll
        for (int i = 0; i < kRun; ++i) {
          // Of rows that are not there, what lies there: their sums are not used.
          values[i] = *reinterpret_cast<const float4 *>(x + (row_run + kRowRuns * i) * at.x_ld + k);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          ranks[j] = *reinterpret_cast<const float4 *>(a + (k + j) * at.ranks + 4 * quad);
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
    const int kept = sum_over_lanes(sums, at.quads * kRowRuns);
    const int count = max(at.quads * kRowRuns * kRun * 4 / 32, 1);
#pragma unroll
    for (int i = 0; i < kRun * 4; ++i) {
      if (i >= count) break;
      const int row = row_run + kRowRuns * ((kept + i) / 4), r = 4 * quad + (kept + i) % 4;
      partial[(warp * kRows + row) * at.ranks + r] = sums[i];
    }
    copies_wait<1>();  // B is here
    __syncthreads();
    for (int i = thread; i < kRows * at.ranks; i += kThreads) {
      const int row = i >> (args.log_quads + 2), r = i & (at.ranks - 1);
      float sum = 0;
#pragma unroll
      for (int j = 0; j < kWarps; ++j) sum += partial[j * kRows * at.ranks + i];
      h[i] = args.scaling * sum;
      if (args.h != nullptr && r < args.rank && row < rows) {
        args.h[(first + row) * args.rank + r] = sum;
      }
    }
    __syncthreads();

    float *const y = static_cast<float *>(args.y) + first * args.y_stride;
    const int first_row = thread / kColThreads * kMyRows;
    for (int col = thread % kColThreads * 4; col < args.cols; col += 4 * kColThreads) {
      float results[kMyRows][4] = {};
#pragma unroll 2
      for (int r = 0; r < args.rank; r += 4) {
        float4 columns[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          columns[j] = *reinterpret_cast<const float4 *>(b + (r + j) * args.cols + col);
        }
#pragma unroll
        for (int row = 0; row < kMyRows; ++row) {
          const float4 ranks =
              *reinterpret_cast<const float4 *>(h + (first_row + row) * at.ranks + r);
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
        auto *const to = reinterpret_cast<float4 *>(y + (first_row + row) * args.y_stride + col);
        float4 result =
            make_float4(results[row][0], results[row][1], results[row][2], results[row][3]);
        if (args.accumulate) {
          const float4 before = *to;
          result.x += before.x, result.y += before.y, result.z += before.z, result.w += before.w;
        }
        *to = result;
      }
    }
    float *const other = x;
    x = next, next = other;
  }
}

}  // namespace graft::cuda::small
