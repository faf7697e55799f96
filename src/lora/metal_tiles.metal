// The layer with its LoRA pair, the pair alone, and h, in tiles of src/backend/metal/tile.metal.

// Masks what the pair adds to dx.
template <typename Dropout>
struct MaskSum {
  float take(float sum, uint row, uint col) const {
    return dropout.apply(sum, ulong(place.row + row) * cols + place.col + col);
  }
  Dropout dropout;
  TilePlace place;
  uint cols;
};

// Writes y = drop(sum) + bias.
template <typename Y, typename BiasOf, typename Dropout>
struct StoreY {
  float take(float sum, uint tile_row, uint tile_col) const {
    const uint row = place.row + tile_row, col = place.col + tile_col;
    const ulong element = ulong(row) * cols + col;
    if (row < rows && col < cols) y[element] = Y(dropout.apply(sum, element) + bias.at(col));
    return sum;
  }
  device Y* y;
  BiasOf bias;
  Dropout dropout;
  TilePlace place;
  uint rows;
  uint cols;
};

// A tile of y = drop(scaling*h*B) + bias + x*W: the low-rank steps come first, on the same
// accumulators, so that dropout can mask them alone.
template <typename T, typename Y, int kRows, int kCols, bool kDrops, typename H, typename B,
          typename X, typename W, typename BiasOf, typename DropY>
void lora_linear_tile(H h, B b, uint rank, X x, W w, uint depth, BiasOf bias, DropY drop_y,
                      device Y* y, uint rows, uint cols, TilePlace place, threadgroup T* left_tile,
                      threadgroup T* right_tile, threadgroup float* strips) {
  simdgroup_matrix<float, 8, 8> sums[Quarter<kRows, kCols>::kMatrices];
  clear_sums<kRows, kCols>(sums);
  add_products<T, kRows, kCols>(h, b, rank, place, left_tile, right_tile, sums);
  if (kDrops) {
    visit_sums<kRows, kCols, true>(MaskSum<DropY>{drop_y, place, cols}, place, strips, sums);
  }
  add_products<T, kRows, kCols>(x, w, depth, place, left_tile, right_tile, sums);
  const StoreY<Y, BiasOf, NoDropout> store{y, bias, NoDropout{}, place, rows, cols};
  visit_sums<kRows, kCols, false>(store, place, strips, sums);
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

// The same, and keeps h in threadgroup memory as it enters the next product: scaled, then rounded, zero
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

// A block of kRows rows of y = drop(scaling*(x*A)*B) is a threadgroup's: its h is made once and stays in
// threadgroup memory; x and y are touched once, A and B once a block.
template <typename T, int kRank, int kRows, int kCols, typename X, typename A, typename B,
          typename DropY>
void lora_delta_tile(X x, A a, B b, float scaling, device T* y, device float* h, DropY drop_y,
                     TilePlace place, threadgroup T* h_block, threadgroup T* left_tile,
                     threadgroup T* right_tile, threadgroup float* strips) {
  const StoreAndKeepH<T, Shrink<kRank>::kPadded> keep{h, x.rows, uint(kRank), place, h_block,
                                                      scaling};
  shrink_block<T, kRank, kRows>(x, a, keep, place, left_tile, right_tile, strips);
  simdgroup_matrix<float, 8, 8> sums[Quarter<kRows, kCols>::kMatrices];
  for (uint first = 0; first < b.cols; first += kCols) {
    place.col = first;
    clear_sums<kRows, kCols>(sums);
    add_resident_products<T, kRows, kCols, Shrink<kRank>::kPadded>(h_block, b, place, right_tile,
                                                                   sums);
    const StoreY<T, NoBias, DropY> store_y{y, NoBias{}, drop_y, place, x.rows, b.cols};
    visit_sums<kRows, kCols, false>(store_y, place, strips, sums);
  }
}
