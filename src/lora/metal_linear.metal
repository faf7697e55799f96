// A layer with its LoRA pair in one accumulator, of tiles of src/backend/metal/tile.metal.

// A tile of y = drop(scaling*h*B) + bias + x*W: the low-rank steps come first, on the same
// accumulators, so that dropout can mask them alone.
template <typename T, typename Y, typename H, typename B, typename X, typename W, typename BiasOf,
          typename DropY>
void lora_linear_tile(H h, B b, uint rank, X x, W w, uint depth, BiasOf bias, DropY drop_y,
                      bool drops, device Y* y, uint rows, uint cols, TilePlace place,
                      threadgroup T* left_tile, threadgroup T* right_tile,
                      threadgroup float* y_tile) {
  simdgroup_matrix<float, 8, 8> sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  add_products<T>(h, b, rank, place, left_tile, right_tile, sums);
  if (drops) {
    store_sums(place, y_tile, sums);
    for (uint i = place.index; i < uint(kTile * kTile); i += kTileThreads) {
      const ulong element = ulong(place.row + i / kTile) * cols + place.col + i % kTile;
      y_tile[i] = drop_y.apply(y_tile[i], element);
    }
    load_sums(place, y_tile, sums);
  }
  add_products<T>(x, w, depth, place, left_tile, right_tile, sums);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  store_sums(place, y_tile, sums);
  for (uint i = place.index; i < uint(kTile * kTile); i += kTileThreads) {
    const uint row = place.row + i / kTile, col = place.col + i % kTile;
    if (row < rows && col < cols) y[ulong(row) * cols + col] = Y(y_tile[i] + bias.at(col));
  }
}
