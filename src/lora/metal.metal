// The contribution of a LoRA pair, y = scaling*(drop(x)*A)*B, and its gradients. T is what is
// multiplied; sums and h are float. A and B are views (src/backend/metal/view.metal); other pointers to
// inputs may be device or constant: MLX chooses by their size. Backward, dx is the same with dy, transposed B and transposed A, and dropout on what comes out.

// Columns of A that a pass over a row of x takes.
constant constexpr int kShrinkColumns = 8;

// sums[j] = sum over k of drop(x)[row, k] * A[k, first + j], the same in every lane: lanes go along k.
template <typename T, int kRank, typename X, typename A, typename Dropout>
void shrink_row(X x, A a, ulong row, uint in_features, int first, uint lane, Dropout dropout,
                thread float* sums) {
  for (int j = 0; j < kShrinkColumns; ++j) sums[j] = 0.0f;
  for (uint k = lane; k < in_features; k += 32) {
    const ulong element = row * in_features + k;
    const float value = float(dropout.apply(T(x[element]), element));
    for (int j = 0; j < kShrinkColumns; ++j) {
      if (first + j < kRank) {
        sums[j] = fma(value, float(T(a.get(k, uint(first + j)))), sums[j]);
      }
    }
  }
  for (int j = 0; j < kShrinkColumns; ++j) sums[j] = simd_sum(sums[j]);
}

// Plain: one simdgroup makes a row of h, of which lane l keeps columns l, l + 32, ..., and its row of
// y. Nothing is shared, so nothing waits; A and B are read once a row.
template <typename T, int kRank, typename X, typename A, typename B, typename DropX, typename DropY>
void lora_delta_row(X x, A a, B b, float scaling, device T* y, device float* h, uint row,
                    uint in_features, uint out_features, uint lane, DropX drop_x, DropY drop_y) {
  float mine[(kRank + 31) / 32];
  for (int first = 0; first < kRank; first += kShrinkColumns) {
    float sums[kShrinkColumns];
    shrink_row<T, kRank>(x, a, row, in_features, first, lane, drop_x, sums);
    for (int j = 0; j < kShrinkColumns && first + j < kRank; ++j) {
      if (uint(first + j) % 32 != lane) continue;
      mine[(first + j) / 32] = sums[j];
      h[ulong(row) * kRank + uint(first + j)] = sums[j];
    }
  }
  // Every lane shows its part of h in every round, those past the last column too.
  for (uint begin = 0; begin < out_features; begin += 32) {
    const uint col = begin + lane;
    float sum = 0.0f;
    for (int j = 0; j < kRank; ++j) {
      const float hj = float(T(scaling * simd_shuffle(mine[j / 32], ushort(j % 32))));
      if (col < out_features) {
        sum = fma(hj, float(T(b.get(uint(j), col))), sum);
      }
    }
    const ulong element = ulong(row) * out_features + col;
    if (col < out_features) y[element] = T(drop_y.apply(sum, element));
  }
}

// A block of kRows rows is a threadgroup's: h is made once, in threadgroup memory, a simdgroup a row;
// then each thread makes columns of y, for all rows of the block from one read of B.
template <typename T, int kRank, int kRows, typename X, typename A, typename B, typename DropX,
          typename DropY>
void lora_delta_block(X x, A a, B b, float scaling, device T* y, device float* h,
                      threadgroup float* h_block, uint block, uint rows, uint in_features,
                      uint out_features, uint index, uint threads, uint simdgroup, uint simdgroups,
                      uint lane, DropX drop_x, DropY drop_y) {
  const uint first_row = block * kRows;
  const uint here = min(uint(kRows), rows - first_row);
  for (uint r = simdgroup; r < here; r += simdgroups) {
    for (int first = 0; first < kRank; first += kShrinkColumns) {
      float sums[kShrinkColumns];
      shrink_row<T, kRank>(x, a, first_row + r, in_features, first, lane, drop_x, sums);
      for (int j = 0; j < kShrinkColumns && first + j < kRank; ++j) {
        if (uint(j) == lane) h_block[r * kRank + uint(first + j)] = sums[j];
      }
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  for (uint i = index; i < here * kRank; i += threads) {
    h[ulong(first_row) * kRank + i] = h_block[i];
  }
  for (uint col = index; col < out_features; col += threads) {
    float sums[kRows];
    for (int r = 0; r < kRows; ++r) sums[r] = 0.0f;
    for (int j = 0; j < kRank; ++j) {
      const float bj = float(T(b.get(uint(j), col)));
      for (uint r = 0; r < here; ++r) {
        sums[r] = fma(float(T(scaling * h_block[r * kRank + uint(j)])), bj, sums[r]);
      }
    }
    for (uint r = 0; r < here; ++r) {
      const ulong element = ulong(first_row + r) * out_features + col;
      y[element] = T(drop_y.apply(sums[r], element));
    }
  }
}

// Columns of the gradient of A or B that a thread sums, and its lanes' columns of x or dy.
constant constexpr int kOuterColumns = 8;

// out[j] of column c = scaling*sum over m of coefficients[m, j] * drop(matrix)[m, c]: the gradient of A, of x and
// g = dy*transposed B, or that of B, of dy and h. Lanes go along the columns of the matrix, simdgroups along its
// rows; then the first simdgroup adds what the others have, in their order. kByColumn: out is (columns,
// kRank), else (kRank, columns).
template <typename T, int kRank, int kSimdgroups, bool kByColumn, typename Matrix,
          typename Coefficients, typename Dropout>
void lora_outer(Matrix matrix, Coefficients coefficients, float scaling, device float* out,
                threadgroup float* partial, uint rows, uint columns, uint2 group, uint simdgroup,
                uint lane, Dropout dropout) {
  const uint col = group.x * 32 + lane;
  const int first = int(group.y) * kOuterColumns;
  float sums[kOuterColumns];
  for (int j = 0; j < kOuterColumns; ++j) sums[j] = 0.0f;
  for (uint row = simdgroup; row < rows && col < columns; row += kSimdgroups) {
    const ulong element = ulong(row) * columns + col;
    const float value = float(dropout.apply(T(matrix[element]), element));
    for (int j = 0; j < kOuterColumns && first + j < kRank; ++j) {
      sums[j] = fma(float(coefficients[ulong(row) * kRank + uint(first + j)]), value, sums[j]);
    }
  }
  for (int j = 0; j < kOuterColumns; ++j) {
    partial[(simdgroup * kOuterColumns + uint(j)) * 32 + lane] = sums[j];
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  if (simdgroup > 0 || col >= columns) return;
  for (int j = 0; j < kOuterColumns && first + j < kRank; ++j) {
    float sum = 0.0f;
    for (int s = 0; s < kSimdgroups; ++s) sum += partial[(s * kOuterColumns + j) * 32 + int(lane)];
    const uint at = kByColumn ? col * kRank + uint(first + j) : uint(first + j) * columns + col;
    out[at] = scaling * sum;
  }
}

// h = drop(x)*A alone, a simdgroup a row: for the tiles of lora_linear, none of which has all of K.
template <typename T, int kRank, typename X, typename A, typename Dropout>
void lora_shrink(X x, A a, device float* h, uint row, uint in_features, uint lane,
                 Dropout dropout) {
  for (int first = 0; first < kRank; first += kShrinkColumns) {
    float sums[kShrinkColumns];
    shrink_row<T, kRank>(x, a, row, in_features, first, lane, dropout, sums);
    for (int j = 0; j < kShrinkColumns && first + j < kRank; ++j) {
      if (uint(j) == lane) h[ulong(row) * kRank + uint(first + j)] = sums[j];
    }
  }
}
