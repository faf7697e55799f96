// The contribution of a LoRA pair, y = scaling*(drop(x)*A)*B, and its gradients. T is what is
// multiplied; sums and h are float. Backward, dx is the same with dy, transposed B and transposed A, and
// dropout on what comes out.

struct DeltaScalars {
  long a_row, a_col, b_row, b_col;  // strides
  uint rows, in_features, out_features;
  float scaling;
  uint threshold;
  float keep;
};

// Plain: one simdgroup makes a row of h, of which lane l keeps columns l, l + 32, ..., and its row of
// y. Nothing is shared, so nothing waits; A and B are read once a row.
template <typename T, typename A, typename B, int kRank, bool kDropsX, bool kDropsY>
[[kernel]] void lora_delta_row(
    const device T* x [[buffer(0)]], const device A* a [[buffer(1)]],
    const device B* b [[buffer(2)]], const device ulong* seed [[buffer(3)]],
    const device ulong* offset [[buffer(4)]], device T* y [[buffer(5)]],
    device float* h [[buffer(6)]], constant const DeltaScalars& scalars [[buffer(7)]],
    uint row [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]]) {
  const View<const device A*> view_a = {a, scalars.a_row, scalars.a_col};
  const View<const device B*> view_b = {b, scalars.b_row, scalars.b_col};
  const Dropout<kDropsX> drop_x =
      dropout_of<kDropsX>(seed, offset, scalars.threshold, scalars.keep);
  const Dropout<kDropsY> drop_y =
      dropout_of<kDropsY>(seed, offset, scalars.threshold, scalars.keep);
  const uint in_features = scalars.in_features;
  const uint out_features = scalars.out_features;
  const float scaling = scalars.scaling;
  float mine[(kRank + 31) / 32];
  for (int first = 0; first < kRank; first += kShrinkColumns) {
    float sums[kShrinkColumns];
    shrink_one_row<T, kRank>(x, view_a, row, in_features, first, lane, drop_x, sums);
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
        sum = fma(hj, float(T(view_b.get(uint(j), col))), sum);
      }
    }
    const ulong element = ulong(row) * out_features + col;
    if (col < out_features) y[element] = T(drop_y.apply(sum, element));
  }
}

// A block of kRows rows is a threadgroup's: h is made once, in threadgroup memory, a simdgroup a row;
// then each thread makes columns of y, for all rows of the block from one read of B.
template <typename T, typename A, typename B, int kRank, bool kDropsX, bool kDropsY, int kRows>
[[kernel]] void lora_delta_block(
    const device T* x [[buffer(0)]], const device A* a [[buffer(1)]],
    const device B* b [[buffer(2)]], const device ulong* seed [[buffer(3)]],
    const device ulong* offset [[buffer(4)]], device T* y [[buffer(5)]],
    device float* h [[buffer(6)]], constant const DeltaScalars& scalars [[buffer(7)]],
    uint block [[threadgroup_position_in_grid]], uint index [[thread_index_in_threadgroup]],
    uint threads [[threads_per_threadgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float h_block[kRows * kRank];
  const View<const device A*> view_a = {a, scalars.a_row, scalars.a_col};
  const View<const device B*> view_b = {b, scalars.b_row, scalars.b_col};
  const Dropout<kDropsX> drop_x =
      dropout_of<kDropsX>(seed, offset, scalars.threshold, scalars.keep);
  const Dropout<kDropsY> drop_y =
      dropout_of<kDropsY>(seed, offset, scalars.threshold, scalars.keep);
  const uint rows = scalars.rows, in_features = scalars.in_features;
  const uint out_features = scalars.out_features;
  const float scaling = scalars.scaling;
  const uint first_row = block * kRows;
  const uint here = min(uint(kRows), rows - first_row);
  for (uint r = simdgroup; r < here; r += simdgroups) {
    for (int first = 0; first < kRank; first += kShrinkColumns) {
      float sums[kShrinkColumns];
      shrink_one_row<T, kRank>(x, view_a, first_row + r, in_features, first, lane, drop_x, sums);
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
      const float bj = float(T(view_b.get(uint(j), col)));
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

// Writes h, and keeps it in threadgroup memory as it enters the next product: scaled, then rounded, zero
// past the rank.
template <typename T, int kPadded>
struct StoreAndKeepH {
  float take(float sum, uint tile_row, uint tile_col) const {
    const uint row = place.row + tile_row, col = place.col + tile_col;
    if (row < rows && col < rank) h[ulong(row) * rank + col] = sum;
    if (col < uint(kPadded)) h_block[tile_row * kPadded + col] = T(scaling * sum);
    return sum;
  }
  device float* h;
  uint rows;
  uint rank;
  TilePlace place;
  threadgroup T* h_block;
  float scaling;
};

// A block of kRows rows of y = drop(scaling*(x*A)*B) is a threadgroup's: its h is made once and stays in
// threadgroup memory; x and y are touched once, A and B once a block.
template <typename T, typename A, typename B, int kRank, bool kDropsX, bool kDropsY, int kRows,
          int kCols>
[[kernel]] void lora_delta_tile(
    const device T* x [[buffer(0)]], const device A* a [[buffer(1)]],
    const device B* b [[buffer(2)]], const device ulong* seed [[buffer(3)]],
    const device ulong* offset [[buffer(4)]], device T* y [[buffer(5)]],
    device float* h [[buffer(6)]], constant const DeltaScalars& scalars [[buffer(7)]],
    uint2 group [[threadgroup_position_in_grid]], uint index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
  threadgroup T left_tile[kRows * 16];
  threadgroup T right_tile[16 * kCols];
  threadgroup float strips[16 * kCols];
  const TilePlace place = tile_place<kRows, kCols>(group, index, simdgroup, lane);
  threadgroup T h_block[kRows * Shrink<kRank>::kPadded];
  const View<const device A*> view_a = {a, scalars.a_row, scalars.a_col};
  const View<const device B*> view_b = {b, scalars.b_row, scalars.b_col};
  const Dropout<kDropsX> drop_x =
      dropout_of<kDropsX>(seed, offset, scalars.threshold, scalars.keep);
  const Dropout<kDropsY> drop_y =
      dropout_of<kDropsY>(seed, offset, scalars.threshold, scalars.keep);
  const uint rows = scalars.rows, in_features = scalars.in_features;
  const uint out_features = scalars.out_features;
  const float scaling = scalars.scaling;
  const Dropped<T, const device T*, kDropsX> dropped = {x, rows, in_features, drop_x};
  const Viewed<T, View<const device A*>> viewed_a = {view_a, in_features, kRank};
  const Viewed<T, View<const device B*>> viewed_b = {view_b, kRank, out_features};
  const StoreAndKeepH<T, Shrink<kRank>::kPadded> keep = {h, rows, kRank, place, h_block, scaling};
  shrink_block<T, kRank, kRows>(dropped, viewed_a, keep, place, left_tile, right_tile, strips);
  simdgroup_matrix<float, 8, 8> sums[Quarter<kRows, kCols>::kMatrices];
  TilePlace tile = place;
  for (uint first = 0; first < out_features; first += kCols) {
    tile.col = first;
    clear_sums<kRows, kCols>(sums);
    add_resident_products<T, kRows, kCols, Shrink<kRank>::kPadded>(h_block, viewed_b, tile,
                                                                   right_tile, sums);
    const StoreY<T, Bias<const device T*, false>, kDropsY> store = {y, {x}, drop_y, tile, rows,
                                                                   out_features};
    visit_sums<kRows, kCols, false>(store, tile, strips, sums);
  }
}

// Columns of the gradient of A or B that a thread sums, and its lanes' columns of x or dy.
constant constexpr int kOuterColumns = 8;

struct OuterScalars {
  long col_stride, rank_stride;  // of the gradient
  uint rows, columns;
  float scaling;
  uint threshold;
  float keep;
};

// out[j] of column c = scaling*sum over m of coefficients[m, j] * drop(matrix)[m, c]: the gradient of A, of x and
// g = dy*transposed B, or that of B, of dy and h. Lanes go along the columns of the matrix, simdgroups along its
// rows; then the first simdgroup adds what the others have, in their order.
template <typename T, int kRank, bool kDrops, int kSimdgroups>
[[kernel]] void lora_outer(
    const device T* matrix [[buffer(0)]], const device float* coefficients [[buffer(1)]],
    const device ulong* seed [[buffer(2)]], const device ulong* offset [[buffer(3)]],
    device float* out [[buffer(4)]], constant const OuterScalars& scalars [[buffer(5)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float partial[kSimdgroups * kOuterColumns * 32];
  const uint rows = scalars.rows, columns = scalars.columns;
  const Dropout<kDrops> dropout =
      dropout_of<kDrops>(seed, offset, scalars.threshold, scalars.keep);
  const uint col = group.x * 32 + lane;
  const int first = int(group.y) * kOuterColumns;
  float sums[kOuterColumns];
  for (int j = 0; j < kOuterColumns; ++j) sums[j] = 0.0f;
  for (uint row = simdgroup; row < rows && col < columns; row += kSimdgroups) {
    const ulong element = ulong(row) * columns + col;
    const float value = float(dropout.apply(matrix[element], element));
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
    out[long(col) * scalars.col_stride + long(first + j) * scalars.rank_stride] =
        scalars.scaling * sum;
  }
}
