// h = drop(x)*A alone, for products none of whose tiles has all of K.

// Columns of A that a pass over a row of x takes.
constant constexpr int kShrinkColumns = 8;

// sums[j] = sum over k of drop(x)[row, k] * A[k, first + j], the same in every lane: lanes go along k.
template <typename T, int kRank, typename X, typename A, bool kDrops>
void shrink_one_row(X x, A a, ulong row, uint in_features, int first, uint lane, Dropout<kDrops> dropout,
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

// Columns of h that a pass over x makes; and the rank, its tail made a whole step of the depth.
template <int kRank>
struct Shrink {
  enum { kCols = kRank <= 16 ? 16 : kRank <= 32 ? 32 : 64, kPadded = (kRank + 15) / 16 * 16 };
};

// Writes h.
struct StoreH {
  float take(float sum, uint tile_row, uint tile_col) const {
    const uint row = place.row + tile_row, col = place.col + tile_col;
    if (row < rows && col < rank) h[ulong(row) * rank + col] = sum;
    return sum;
  }
  device float* h;
  uint rows;
  uint rank;
  TilePlace place;
};

// h = x*A of the kRows rows from place.row on, for `keep`.
template <typename T, int kRank, int kRows, typename X, typename A, typename Keep>
void shrink_block(X x, A a, Keep keep, TilePlace place, threadgroup T* left_tile,
                  threadgroup T* right_tile, threadgroup float* strips) {
  simdgroup_matrix<float, 8, 8> sums[Quarter<kRows, Shrink<kRank>::kCols>::kMatrices];
  for (uint first = 0; first < uint(kRank); first += Shrink<kRank>::kCols) {
    place.col = first;
    keep.place = place;
    clear_sums<kRows, Shrink<kRank>::kCols>(sums);
    add_products<T, kRows, Shrink<kRank>::kCols>(x, a, x.cols, place, left_tile, right_tile, sums);
    visit_sums<kRows, Shrink<kRank>::kCols, false>(keep, place, strips, sums);
  }
}

struct ShrinkScalars {
  long a_row, a_col;  // strides
  uint rows, depth, threshold;
  float keep;
};

// A simdgroup a row.
template <typename T, typename X, typename A, int kRank, bool kDrops>
[[kernel]] void shrink_row(
    const device X* x [[buffer(0)]], const device A* a [[buffer(1)]],
    const device ulong* seed [[buffer(2)]], const device ulong* offset [[buffer(3)]],
    device float* h [[buffer(4)]], constant const ShrinkScalars& scalars [[buffer(5)]],
    uint row [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]]) {
  const View<const device A*> view = {a, scalars.a_row, scalars.a_col};
  const Dropout<kDrops> dropout =
      dropout_of<kDrops>(seed, offset, scalars.threshold, scalars.keep);
  for (int first = 0; first < kRank; first += kShrinkColumns) {
    float sums[kShrinkColumns];
    shrink_one_row<T, kRank>(x, view, row, scalars.depth, first, lane, dropout, sums);
    for (int j = 0; j < kShrinkColumns && first + j < kRank; ++j) {
      if (uint(j) == lane) h[ulong(row) * kRank + uint(first + j)] = sums[j];
    }
  }
}

// A threadgroup a block of rows.
template <typename T, typename X, typename A, int kRank, bool kDrops, int kRows, int kCols>
[[kernel]] void shrink_tile(
    const device X* x [[buffer(0)]], const device A* a [[buffer(1)]],
    const device ulong* seed [[buffer(2)]], const device ulong* offset [[buffer(3)]],
    device float* h [[buffer(4)]], constant const ShrinkScalars& scalars [[buffer(5)]],
    uint2 group [[threadgroup_position_in_grid]], uint index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
  threadgroup T left_tile[kRows * 16];
  threadgroup T right_tile[16 * kCols];
  threadgroup float strips[16 * kCols];
  const TilePlace place = tile_place<kRows, kCols>(group, index, simdgroup, lane);
  const Dropped<T, const device X*, kDrops> dropped = {
      x, scalars.rows, scalars.depth,
      dropout_of<kDrops>(seed, offset, scalars.threshold, scalars.keep)};
  const Viewed<T, View<const device A*>> viewed = {
      {a, scalars.a_row, scalars.a_col}, scalars.depth, kRank};
  const StoreH keep = {h, scalars.rows, kRank, place};
  shrink_block<T, kRank, kRows>(dropped, viewed, keep, place, left_tile, right_tile, strips);
}
