// A tile of a product in simdgroup matrices. A threadgroup of 128 threads, four simdgroups, makes
// 32 x 32 of y, each simdgroup 16 x 16 in four accumulators. Operands are staged in threadgroup memory
// and padded with zeros there, so that every tail is a whole tile; T is what is multiplied.

constant constexpr int kTile = 32;
constant constexpr int kTileDepth = 16;
constant constexpr int kTileThreads = 128;

// Operands, by where element (row, col) lies; zero outside.
template <typename T, typename P>
struct RowMajor {
  T at(uint row, uint col) const {
    return row < rows && col < cols ? T(float(data[ulong(row) * cols + col])) : T(0.0f);
  }
  P data;
  uint rows;
  uint cols;
};
template <typename T, typename P>
struct Transposed {
  T at(uint row, uint col) const {
    return row < rows && col < cols ? T(float(data[ulong(col) * rows + row])) : T(0.0f);
  }
  P data;
  uint rows;
  uint cols;
};
// h as it enters the product: scaled, then rounded.
template <typename T, typename P>
struct Scaled {
  T at(uint row, uint col) const {
    return row < rows && col < cols ? T(scaling * data[ulong(row) * cols + col]) : T(0.0f);
  }
  P data;
  uint rows;
  uint cols;
  float scaling;
};

// What is added to a column of y.
struct NoBias {
  float at(uint col) const { return 0.0f; }
};
template <typename P>
struct Bias {
  float at(uint col) const { return float(data[col]); }
  P data;
};

// Where a thread's tile is.
struct TilePlace {
  uint row;        // of the tile's first element
  uint col;
  uint index;      // of the thread in its threadgroup
  uint simdgroup;  // of the four
};

// sums += left * right over `depth` columns of left.
template <typename T, typename Left, typename Right>
void add_products(Left left, Right right, uint depth, TilePlace place, threadgroup T* left_tile,
                  threadgroup T* right_tile, thread simdgroup_matrix<float, 8, 8>* sums) {
  const uint first_row = place.simdgroup / 2 * 16, first_col = place.simdgroup % 2 * 16;
  for (uint begin = 0; begin < depth; begin += kTileDepth) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = place.index; i < uint(kTile * kTileDepth); i += kTileThreads) {
      left_tile[i] = left.at(place.row + i / kTileDepth, begin + i % kTileDepth);
      right_tile[i] = right.at(begin + i / kTile, place.col + i % kTile);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (int k = 0; k < kTileDepth; k += 8) {
      simdgroup_matrix<T, 8, 8> rows[2];
      simdgroup_matrix<T, 8, 8> cols[2];
      for (int i = 0; i < 2; ++i) {
        simdgroup_load(rows[i], left_tile + (first_row + i * 8) * kTileDepth + k, kTileDepth);
        simdgroup_load(cols[i], right_tile + k * kTile + first_col + i * 8, kTile);
      }
      for (int i = 0; i < 4; ++i) {
        simdgroup_multiply_accumulate(sums[i], rows[i / 2], cols[i % 2], sums[i]);
      }
    }
  }
}

// The four accumulators of every simdgroup, to and from the tile in threadgroup memory.
inline void store_sums(TilePlace place, threadgroup float* y_tile,
                       thread simdgroup_matrix<float, 8, 8>* sums) {
  const uint first = place.simdgroup / 2 * 16 * kTile + place.simdgroup % 2 * 16;
  for (int i = 0; i < 4; ++i) {
    simdgroup_store(sums[i], y_tile + first + uint(i / 2) * 8 * kTile + uint(i % 2) * 8, kTile);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
}
inline void load_sums(TilePlace place, threadgroup float* y_tile,
                      thread simdgroup_matrix<float, 8, 8>* sums) {
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const uint first = place.simdgroup / 2 * 16 * kTile + place.simdgroup % 2 * 16;
  for (int i = 0; i < 4; ++i) {
    simdgroup_load(sums[i], y_tile + first + uint(i / 2) * 8 * kTile + uint(i % 2) * 8, kTile);
  }
}
