// A product with a low-rank pair, in tiles.

struct ProductScalars {
  long a_row, a_col, b_row, b_col;  // strides
  uint rows, depth, cols, rank;
  float scaling;
  uint threshold;
  float keep;
};

// Masks what the pair adds to dx.
template <bool kDrops>
struct MaskSum {
  float take(float sum, uint row, uint col) const {
    return dropout.apply(sum, ulong(place.row + row) * cols + place.col + col);
  }
  Dropout<kDrops> dropout;
  TilePlace place;
  uint cols;
};

// A tile of y = drop(scaling*h*B) + bias + x*W: the low-rank steps come first, on the same
// accumulators, so that dropout can mask them alone. kTransposed: W is (cols, depth). Of rank 0, h and B
// are not read.
template <typename T, typename X, typename W, typename B0, typename B, bool kTransposed, bool kBias,
          bool kDrops, int kRows, int kCols>
[[kernel]] void product_tile(
    const device X* x [[buffer(0)]], const device W* w [[buffer(1)]],
    const device B0* bias [[buffer(2)]], const device B* b [[buffer(3)]],
    const device float* h [[buffer(4)]], const device ulong* seed [[buffer(5)]],
    const device ulong* offset [[buffer(6)]], device X* y [[buffer(7)]],
    constant const ProductScalars& scalars [[buffer(8)]],
    uint2 group [[threadgroup_position_in_grid]], uint index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
  threadgroup T left_tile[kRows * 16];
  threadgroup T right_tile[16 * kCols];
  threadgroup float strips[16 * kCols];
  const TilePlace place = tile_place<kRows, kCols>(group, index, simdgroup, lane);
  const uint rows = scalars.rows, depth = scalars.depth, cols = scalars.cols, rank = scalars.rank;
  simdgroup_matrix<float, 8, 8> sums[Quarter<kRows, kCols>::kMatrices];
  clear_sums<kRows, kCols>(sums);
  const Scaled<T, const device float*> left = {h, rows, rank, scalars.scaling};
  const Viewed<T, View<const device B*>> right = {{b, scalars.b_row, scalars.b_col}, rank, cols};
  add_products<T, kRows, kCols>(left, right, rank, place, left_tile, right_tile, sums);
  if (kDrops) {
    const MaskSum<kDrops> mask = {
        dropout_of<kDrops>(seed, offset, scalars.threshold, scalars.keep), place, cols};
    visit_sums<kRows, kCols, true>(mask, place, strips, sums);
  }
  const Stored<T, const device X*, false> stored_x = {x, rows, depth};
  const Stored<T, const device W*, kTransposed> stored_w = {w, depth, cols};
  add_products<T, kRows, kCols>(stored_x, stored_w, depth, place, left_tile, right_tile, sums);
  const StoreY<X, Bias<const device B0*, kBias>, false> store = {
      y, {bias}, {0, 0, 0, 1.0f}, place, rows, cols};
  visit_sums<kRows, kCols, false>(store, place, strips, sums);
}
