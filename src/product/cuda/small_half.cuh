#pragma once

#include "product/cuda/small.cuh"

namespace graft::cuda::small {

// Half types, 16 rows and some columns a block. x, A and B go to shared memory, in rows that are an
// odd number of 16 bytes long: eight of them, which ldmatrix reads at once, lie in different banks.
// A warp multiplies every eighth step of 16 along K, then every eighth 16 columns of y.
constexpr int kHalfRows = 16;

__host__ __device__ constexpr int odd_vectors(int elements) {  // of 16-bit elements, in elements
  return ((elements + 7) / 8 | 1) * 8;
}

struct HalfShared {
  static constexpr int a_ld = odd_vectors(kMostRank);

  int x_ld, b_ld, x_size, a, b, scaled;  // in elements
  int partial;                           // in bytes

  __host__ __device__ HalfShared(int depth, int cols, int buffers)
      : x_ld(odd_vectors((depth + 15) / 16 * 16)),
        b_ld(odd_vectors(cols)),
        x_size(kHalfRows * x_ld),
        a(buffers * x_size),
        b(a + (depth + 15) / 16 * 16 * a_ld),
        scaled(b + kMostRank * b_ld),
        partial((scaled + kHalfRows * a_ld) * 2) {}
  std::size_t bytes() const {
    return static_cast<std::size_t>(partial) + sizeof(float) * kWarps * kHalfRows * kMostRank;
  }
};

// kWhole: A and B are of type T and copied in vectors.
template <class T, bool kWhole>
__global__ void __launch_bounds__(kThreads, 1) small_half(const __grid_constant__ SmallArgs args) {
  extern __shared__ __align__(16) unsigned char memory[];
  const HalfShared at(args.depth, args.block_cols, args.buffers);
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
  const auto copy_x = [&](std::int64_t row, T* to) {
    copy_matrix(to, at.x_ld, static_cast<const T*>(args.x) + row * args.x_stride, args.x_stride,
                rows_from(row), args.depth);
  };
  wait_for_earlier_kernels();

  copy_x(first, x);
  if constexpr (kWhole) {
    copy_matrix(a, at.a_ld, static_cast<const T*>(args.a), args.a_row, args.depth, args.rank);
    copies_commit();
    copy_matrix(b, at.b_ld, static_cast<const T*>(args.b) + first_col, args.b_row, args.rank, cols);
  } else {
    copies_commit();
    const T* const b_from = static_cast<const T*>(args.b) + first_col * args.b_col;
    const float* const b_floats = static_cast<const float*>(args.b) + first_col * args.b_col;
    if (args.float_adapter && args.a_vectors && args.b_vectors) {
      convert_matrix(a, at.a_ld, static_cast<const float*>(args.a), args.a_row, args.depth,
                     args.rank);
      convert_matrix(b, at.b_ld, b_floats, args.b_row, args.rank, cols);
    } else if (args.float_adapter) {
      load_matrix(a, at.a_ld, static_cast<const float*>(args.a), args.a_row, args.a_col, args.depth,
                  args.rank);
      load_matrix(b, at.b_ld, b_floats, args.b_row, args.b_col, args.rank, cols);
    } else {
      load_matrix(a, at.a_ld, static_cast<const T*>(args.a), args.a_row, args.a_col, args.depth,
                  args.rank);
      load_matrix(b, at.b_ld, b_from, args.b_row, args.b_col, args.rank, cols);
    }
  }
  // Zeros past the depth, which is whole eights, and past the rank: what is multiplied with 0 has
  // to be finite. Columns of A past the rank and rows of x that are not there are not used.
  const T zero = from_float<T>(0.0f);
  if (args.depth % 16 != 0) {
    for (int i = thread; i < 8 * kMostRank; i += kThreads) {
      a[(args.depth + i / kMostRank) * at.a_ld + i % kMostRank] = zero;
    }
    for (int i = thread; i < args.buffers * kHalfRows * 8; i += kThreads) {
      x[i / 8 * at.x_ld + args.depth + i % 8] = zero;
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
    if (first + step < args.rows) copy_x(first + step, next);
    copies_commit();

    float sums[kMostRank / 8][4] = {};
    std::uint32_t x_at = shared_address(x + matrix_row * at.x_ld + 16 * warp + matrix_col);
    std::uint32_t a_at = shared_address(a + (16 * warp + matrix_row) * at.a_ld + matrix_col);
#pragma unroll 2
    for (int k = 16 * warp; k < args.depth; k += 16 * kWarps) {
      std::uint32_t x_step[4];
      ldmatrix(x_at, x_step[0], x_step[1], x_step[2], x_step[3]);
#pragma unroll
      for (int r = 0; r < kMostRank; r += 16) {
        if (r >= args.rank) break;
        std::uint32_t two[4];
        ldmatrix_trans(a_at + r * sizeof(T), two[0], two[1], two[2], two[3]);
        mma<T>(sums[r / 8], x_step, {two[0], two[1]});
        mma<T>(sums[r / 8 + 1], x_step, {two[2], two[3]});
      }
      x_at += 16 * kWarps * sizeof(T), a_at += 16 * kWarps * at.a_ld * sizeof(T);
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
#pragma unroll 1
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

}  // namespace graft::cuda::small
