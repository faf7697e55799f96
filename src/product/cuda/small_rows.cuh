#pragma once

#include "product/cuda/small.cuh"

namespace graft::cuda::small {

// float32 of small ranks, 16 rows at a time, by fused multiply-adds: there the matrix units
// (small_parts.cuh) would have half of their tiles empty. A warp copies what it multiplies, its 64
// of K of x and of A, to its own part of shared memory, and waits for no other warp. A lane makes
// kRun rows × 8 ranks of h over some of K:
//
//     lane = row lane + 4 · (rank lane + rank lanes · k lane)       rows: row lane + 4 · i
//
// Then come the sums over lanes and warps, and s·h in shared memory; the next rows of x are on
// their way while a lane makes kRun rows × 8 columns of y:
//
//     lane = col lane + 8 · row lane      rows: row lane + 4 · i     cols: 4 · col lane + 32 · j ..
//     + 3
template <int kRun>
struct RowsShared {
  static constexpr int kRows = 4 * kRun, kXLd = kSlice + 8, kXSize = kRows * kXLd;

  int log_rank_lanes, ranks, a_ld, a_size, h_ld;
  int a, b, h, size;  // in floats

  __host__ __device__ explicit RowsShared(int rank)
      : log_rank_lanes(rank <= 8    ? 0
                       : rank <= 16 ? 1
                                    : 2),
        ranks(8 << log_rank_lanes),
        a_ld(rank == 4 ? 12 : rank + 4),
        a_size(kSlice * a_ld),
        h_ld(ranks + 4),
        a(kWarps * kXSize),
        b(a + kWarps * a_size),
        h(b + kWarps * kSlice * rank),
        size(h + kRows * h_ld) {}
};

/// Half of the lanes, those that differ in one bit, go on with one half of the values, the others
/// with the other.
template <int kCount>
__device__ __forceinline__ void sum_halves(float* values, int bit) {
  const bool upper = (threadIdx.x & bit) != 0;
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) {
    const float mine = upper ? values[i + kCount / 2] : values[i];
    const float theirs = upper ? values[i] : values[i + kCount / 2];
    values[i] = mine + __shfl_xor_sync(~0u, theirs, bit);
  }
}

__device__ __forceinline__ void copy16(float* to, const float* from) {
  copy_async(shared_address(to), from, true);
}

template <int kRun>
__global__ void __launch_bounds__(kThreads, 1) small_rows(const __grid_constant__ SmallArgs args) {
  using Shared = RowsShared<kRun>;
  constexpr int kRows = Shared::kRows, kXLd = Shared::kXLd;
  extern __shared__ __align__(16) float shared[];
  const Shared at(args.rank);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  float* const x = shared + warp * Shared::kXSize;
  float* const a = shared + at.a + warp * at.a_size;
  float* const b = shared + at.b + warp * kSlice * args.rank;
  float* const h = shared + at.h;
  const int step = static_cast<int>(gridDim.x) * kRows, all_rows = static_cast<int>(args.rows);
  const int block_col = static_cast<int>(blockIdx.y) * args.block_cols,
            first_col = block_col + kSlice * warp;
  const int cols = min(args.cols, block_col + args.block_cols);
  const int log_quads = at.log_rank_lanes + 1, quad = lane & ((1 << log_quads) - 1);

  const auto copy_x = [&](int first, int k) {
    const int deep = lane % 8 * 4;
    const float* from =
        static_cast<const float*>(args.x) + (first + lane / 8) * args.x_stride + k + deep;
    float* to = x + lane / 8 * kXLd + deep;
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      if (first + lane / 8 + 4 * i < all_rows) {
        if (k + deep < args.depth) copy16(to + 4 * i * kXLd, from);
        if (k + deep + 32 < args.depth) copy16(to + 4 * i * kXLd + 32, from + 32);
      }
      from += 4 * args.x_stride;
    }
  };
  const auto copy_a = [&](int k) {
    const float* const from = static_cast<const float*>(args.a);
    if (args.a_vectors) {
      if (4 * quad >= args.rank) return;
#pragma unroll 2
      for (int row = lane >> log_quads; row < kSlice; row += 32 >> log_quads) {
        if (k + row < args.depth)
          copy16(a + row * at.a_ld + 4 * quad, from + (k + row) * args.a_row + 4 * quad);
      }
    } else if (args.a_along) {  // fours along K: 64 bytes of each of 8 ranks at once
      const int my_row = lane % 4 * 4;
#pragma unroll 1
      for (int rank = lane / 4; rank < args.rank; rank += 8) {
        float4 fours[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int row = 16 * i + my_row;
          fours[i] = make_float4(0, 0, 0, 0);
          if (k + row < args.depth) {
            fours[i] = *reinterpret_cast<const float4*>(from + k + row + rank * args.a_col);
          }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float* const to = a + (16 * i + my_row) * at.a_ld + rank;
          to[0] = fours[i].x, to[at.a_ld] = fours[i].y;
          to[2 * at.a_ld] = fours[i].z, to[3 * at.a_ld] = fours[i].w;
        }
      }
    } else {
      for (int row = lane; row < min(kSlice, args.depth - k); row += 32) {
#pragma unroll 4
        for (int rank = 0; rank < args.rank; ++rank) {
          a[row * at.a_ld + rank] = from[(k + row) * args.a_row + rank * args.a_col];
        }
      }
    }
  };
  const auto copy_b = [&] {
    const float* const from = static_cast<const float*>(args.b);
    if (args.b_vectors) {
      const int col = lane % 16 * 4;
      if (first_col + col >= cols) return;
#pragma unroll 2
      for (int rank = lane / 16; rank < args.rank; rank += 2) {
        copy16(b + rank * kSlice + col, from + rank * args.b_row + first_col + col);
      }
    } else if (args.b_along) {
#pragma unroll 4
      for (int i = lane; i < kSlice / 4 * args.rank; i += 32) {
        const int col = i % kSlice, rank = i / kSlice * 4;
        if (first_col + col >= cols) continue;
        const float4 four =
            *reinterpret_cast<const float4*>(from + (first_col + col) * args.b_col + rank);
        float* const to = b + rank * kSlice + col;
        to[0] = four.x, to[kSlice] = four.y, to[2 * kSlice] = four.z, to[3 * kSlice] = four.w;
      }
    } else {
      for (int col = lane; col < min(kSlice, cols - first_col); col += 32) {
#pragma unroll 4
        for (int rank = 0; rank < args.rank; ++rank) {
          b[rank * kSlice + col] = from[rank * args.b_row + (first_col + col) * args.b_col];
        }
      }
    }
  };
  int first = static_cast<int>(blockIdx.x) * kRows;
  if (blockIdx.y == 0) {
    constexpr int kOfRow = kThreads / kRows;
    const int row = first + thread / kOfRow;
    if (row < all_rows) {
      const float* const from = static_cast<const float*>(args.x) + row * args.x_stride;
      for (int k = thread % kOfRow * 32; k < args.depth; k += kOfRow * 32) prefetch(from + k);
    }
    if (args.a_vectors || args.a_along) prefetch_share(args.a, args.depth * args.rank * 4);
    if (args.b_vectors || args.b_along) prefetch_share(args.b, args.cols * args.rank * 4);
  }
  wait_for_kernel_before();
  let_next_kernel_start();

  const int my_k = kSlice * warp;
  copy_x(first, my_k);
  copy_a(my_k);
  commit_copies();
  copy_b();
  commit_copies();
  wait_copies<1>();
  const int row_lane = lane % 4, rank_lane = lane / 4 & ((1 << at.log_rank_lanes) - 1);
  const int k_lane = lane / 4 >> at.log_rank_lanes, k_lanes = 8 >> at.log_rank_lanes;
  const bool whole = args.depth <= kAtOnce;
#pragma unroll 1
  for (; first < all_rows; first += step) {
    const int rows = min(all_rows - first, kRows);
    float sums[kRun * 8] = {};
#pragma unroll 1
    for (int k = my_k; k - my_k < args.depth; k += kAtOnce) {
      if (k > my_k) {
        __syncwarp();
        copy_x(first, k);
      }
      if (!whole && (k > my_k || first >= step)) {
        copy_a(k);
      }
      if (!whole) {
        commit_copies();
        wait_copies<0>();
      }
      __syncwarp();
      const int end = min(kSlice, args.depth - k);
#pragma unroll 2
      for (int deep = 4 * k_lane; deep < end; deep += 4 * k_lanes) {
        float4 values[kRun];
#pragma unroll
        for (int i = 0; i < kRun; ++i) {
          // Of rows that are not there, what lies there: their sums are not used.
          values[i] = *reinterpret_cast<const float4*>(x + (row_lane + 4 * i) * kXLd + deep);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float* const from = a + (deep + j) * at.a_ld + 8 * rank_lane;
          const float4 low = *reinterpret_cast<const float4*>(from),
                       high = *reinterpret_cast<const float4*>(from + 4);
#pragma unroll
          for (int i = 0; i < kRun; ++i) {
            const float value = j == 0   ? values[i].x
                                : j == 1 ? values[i].y
                                : j == 2 ? values[i].z
                                         : values[i].w;
            float* const sum = sums + 8 * i;
            sum[0] = fmaf(value, low.x, sum[0]), sum[1] = fmaf(value, low.y, sum[1]);
            sum[2] = fmaf(value, low.z, sum[2]), sum[3] = fmaf(value, low.w, sum[3]);
            sum[4] = fmaf(value, high.x, sum[4]), sum[5] = fmaf(value, high.y, sum[5]);
            sum[6] = fmaf(value, high.z, sum[6]), sum[7] = fmaf(value, high.w, sum[7]);
          }
        }
      }
    }
    __syncwarp();
    // Over the lanes that share K: 2, 4 or 8.
    int kept = 0, count = kRun * 4;
    sum_halves<kRun * 8>(sums, 16);
    kept = lane & 16 ? count : 0;
    if (k_lanes >= 4) {
      sum_halves<kRun * 4>(sums, 8);
      count /= 2, kept += lane & 8 ? count : 0;
    }
    if (k_lanes == 8) {
      sum_halves<kRun * 2>(sums, 4);
      count /= 2, kept += lane & 4 ? count : 0;
    }
    float* const part = x;  // [row][rank], of this warp
#pragma unroll
    for (int i = 0; i < kRun * 4; i += 4) {
      if (i >= count) break;
      const int row = row_lane + 4 * ((kept + i) / 8), rank = 8 * rank_lane + (kept + i) % 8;
      *reinterpret_cast<float4*>(part + row * at.h_ld + rank) =
          make_float4(sums[i], sums[i + 1], sums[i + 2], sums[i + 3]);
    }
    __syncthreads();
    for (int i = thread; i < kRows << log_quads; i += kThreads) {
      const int row = i >> log_quads, rank = 4 * quad;
      float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
      for (int j = 0; j < kWarps; ++j) {
        const float4 one =
            *reinterpret_cast<const float4*>(shared + j * Shared::kXSize + row * at.h_ld + rank);
        sum.x += one.x, sum.y += one.y, sum.z += one.z, sum.w += one.w;
      }
      if (args.h != nullptr && blockIdx.y == 0 && rank < args.rank && row < rows) {
        float* const to = args.h + std::int64_t{first + row} * args.rank + rank;
        to[0] = sum.x, to[1] = sum.y, to[2] = sum.z, to[3] = sum.w;
      }
      *reinterpret_cast<float4*>(h + row * at.h_ld + rank) = make_float4(
          args.scaling * sum.x, args.scaling * sum.y, args.scaling * sum.z, args.scaling * sum.w);
    }
    wait_copies<0>();  // B is here
    __syncthreads();
    if (first + step < all_rows) copy_x(first + step, my_k);
    commit_copies();

    const int col_lane = lane % 8, my_row = lane / 8, my_col = first_col + 4 * col_lane;
    if (first_col < cols) {
      const float* const my_b = b + 4 * col_lane;
      float results[kRun][2][4] = {};
#pragma unroll 2
      for (int rank = 0; rank < args.rank; rank += 4) {
        float4 ranks[kRun];
#pragma unroll
        for (int i = 0; i < kRun; ++i) {
          ranks[i] = *reinterpret_cast<const float4*>(h + (my_row + 4 * i) * at.h_ld + rank);
        }
#pragma unroll
        for (int r = 0; r < 4; ++r) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const float4 four =
                *reinterpret_cast<const float4*>(my_b + (rank + r) * kSlice + j * 32);
#pragma unroll
            for (int i = 0; i < kRun; ++i) {
              const float value = r == 0   ? ranks[i].x
                                  : r == 1 ? ranks[i].y
                                  : r == 2 ? ranks[i].z
                                           : ranks[i].w;
              results[i][j][0] = fmaf(value, four.x, results[i][j][0]);
              results[i][j][1] = fmaf(value, four.y, results[i][j][1]);
              results[i][j][2] = fmaf(value, four.z, results[i][j][2]);
              results[i][j][3] = fmaf(value, four.w, results[i][j][3]);
            }
          }
        }
      }
#pragma unroll
      for (int i = 0; i < kRun; ++i) {
        if (my_row + 4 * i >= rows) break;
        float* const y =
            static_cast<float*>(args.y) + (first + my_row + 4 * i) * args.y_stride + my_col;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          if (my_col + 32 * j >= cols) break;
          auto* const to = reinterpret_cast<float4*>(y + 32 * j);
          float4 result =
              make_float4(results[i][j][0], results[i][j][1], results[i][j][2], results[i][j][3]);
          if (args.accumulate) {
            const float4 before = *to;
            result.x += before.x, result.y += before.y, result.z += before.z, result.w += before.w;
          }
          *to = result;
        }
      }
    }
    wait_copies<0>();
  }
}

}  // namespace graft::cuda::small
