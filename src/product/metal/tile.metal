#include <metal_simdgroup_matrix>

// A tile of a product in simdgroup matrices: kRows x kCols of y are a threadgroup's of 128 threads, four
// simdgroups in two rows of two, each with a quarter of the tile in accumulators of 8 x 8. Operands are
// staged in threadgroup memory, kTileDepth of the depth at a time, and padded with zeros there, so that
// every tail is a whole tile. T is what is multiplied; sums are float.

constant constexpr int kTileDepth = 16;
constant constexpr int kTileThreads = 128;

// Operands, by where element (row, col) lies; zero outside. kByDepth: a row in memory goes along the depth
// of a right operand, and threads that stage it do too.
template <typename T, typename P, bool kTransposed>
struct Stored {
  enum { kByDepth = kTransposed };
  T at(uint row, uint col) const {
    if (row >= rows || col >= cols) return T(0.0f);
    return T(float(data[kTransposed ? ulong(col) * rows + row : ulong(row) * cols + col]));
  }
  P data;
  uint rows;
  uint cols;
};
template <typename T, typename V>
struct Viewed {
  enum { kByDepth = 0 };
  T at(uint row, uint col) const {
    return row < rows && col < cols ? T(view.get(row, col)) : T(0.0f);
  }
  V view;
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
// x on its way to A.
template <typename T, typename P, bool kDrops>
struct Dropped {
  T at(uint row, uint col) const {
    const ulong element = ulong(row) * cols + col;
    return row < rows && col < cols ? dropout.apply(T(float(data[element])), element) : T(0.0f);
  }
  P data;
  uint rows;
  uint cols;
  Dropout<kDrops> dropout;
};

// What is added to a column of y.
template <typename P, bool kBias>
struct Bias {
  float at(uint col) const { return kBias ? float(data[col]) : 0.0f; }
  P data;
};

// Where a thread's tile is, and the thread in its threadgroup.
struct TilePlace {
  uint row;  // of the tile's first element
  uint col;
  uint index;
  uint simdgroup;
  uint lane;
};

template <int kRows, int kCols>
TilePlace tile_place(uint2 group, uint index, uint simdgroup, uint lane) {
  return {group.y * kRows, group.x * kCols, index, simdgroup, lane};
}

// A simdgroup's quarter of a tile, kDown x kAcross matrices from (row, col) of the tile on.
template <int kRows, int kCols>
struct Quarter {
  enum { kDown = kRows / 16, kAcross = kCols / 16, kMatrices = kDown * kAcross };
  uint row;
  uint col;
};
template <int kRows, int kCols>
Quarter<kRows, kCols> quarter_of(uint simdgroup) {
  return {simdgroup / 2 * (kRows / 2), simdgroup % 2 * (kCols / 2)};
}

template <int kRows, int kCols>
void clear_sums(thread simdgroup_matrix<float, 8, 8>* sums) {
  for (int i = 0; i < Quarter<kRows, kCols>::kMatrices; ++i) {
    sums[i] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  }
}

// Stages rows `begin` to `begin` + kTileDepth of a right operand: as they are, or transposed.
template <typename T, int kCols, typename Right>
void stage_right(Right right, uint begin, TilePlace place, threadgroup T* right_tile) {
  for (uint i = place.index; i < uint(kTileDepth * kCols); i += kTileThreads) {
    const uint k = Right::kByDepth ? i % kTileDepth : i / kCols;
    const uint col = Right::kByDepth ? i / kTileDepth : i % kCols;
    right_tile[i] = right.at(begin + k, place.col + col);
  }
}

// sums += left * right over kTileDepth of both, which are in threadgroup memory; left has `stride`
// elements from a row to the next.
template <typename T, int kRows, int kCols, bool kByDepth>
void multiply_staged(threadgroup const T* left, uint stride, threadgroup const T* right_tile,
                     uint simdgroup, thread simdgroup_matrix<float, 8, 8>* sums) {
  const Quarter<kRows, kCols> mine = quarter_of<kRows, kCols>(simdgroup);
  for (int k = 0; k < kTileDepth; k += 8) {
    simdgroup_matrix<T, 8, 8> rows[Quarter<kRows, kCols>::kDown];
    simdgroup_matrix<T, 8, 8> cols[Quarter<kRows, kCols>::kAcross];
    for (int i = 0; i < Quarter<kRows, kCols>::kDown; ++i) {
      simdgroup_load(rows[i], left + (mine.row + uint(i) * 8) * stride + k, stride);
    }
    for (int i = 0; i < Quarter<kRows, kCols>::kAcross; ++i) {
      const uint col = mine.col + uint(i) * 8;
      if (kByDepth) {
        simdgroup_load(cols[i], right_tile + col * kTileDepth + k, kTileDepth, ulong2(0), true);
      } else {
        simdgroup_load(cols[i], right_tile + k * kCols + col, kCols);
      }
    }
    for (int i = 0; i < Quarter<kRows, kCols>::kMatrices; ++i) {
      simdgroup_multiply_accumulate(sums[i], rows[i / Quarter<kRows, kCols>::kAcross],
                                    cols[i % Quarter<kRows, kCols>::kAcross], sums[i]);
    }
  }
}

// sums += left * right over `depth` columns of left.
template <typename T, int kRows, int kCols, typename Left, typename Right>
void add_products(Left left, Right right, uint depth, TilePlace place, threadgroup T* left_tile,
                  threadgroup T* right_tile, thread simdgroup_matrix<float, 8, 8>* sums) {
  for (uint begin = 0; begin < depth; begin += kTileDepth) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = place.index; i < uint(kRows * kTileDepth); i += kTileThreads) {
      left_tile[i] = left.at(place.row + i / kTileDepth, begin + i % kTileDepth);
    }
    stage_right<T, kCols>(right, begin, place, right_tile);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    multiply_staged<T, kRows, kCols, Right::kByDepth>(left_tile, kTileDepth, right_tile,
                                                      place.simdgroup, sums);
  }
}

// The same with all of left, kDepth columns of it, in threadgroup memory already.
template <typename T, int kRows, int kCols, int kDepth, typename Right>
void add_resident_products(threadgroup const T* left, Right right, TilePlace place,
                           threadgroup T* right_tile, thread simdgroup_matrix<float, 8, 8>* sums) {
  for (uint begin = 0; begin < uint(kDepth); begin += kTileDepth) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    stage_right<T, kCols>(right, begin, place, right_tile);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    multiply_staged<T, kRows, kCols, Right::kByDepth>(left + begin, kDepth, right_tile,
                                                      place.simdgroup, sums);
  }
}

// Shows `visit` every sum with its place in y, eight rows of the quarter at a time through the
// simdgroup's part of `strips`, 16 * kCols floats in all; what it returns becomes the sum if kEdits.
template <int kRows, int kCols, bool kEdits, typename Visit>
void visit_sums(Visit visit, TilePlace place, threadgroup float* strips,
                thread simdgroup_matrix<float, 8, 8>* sums) {
  const Quarter<kRows, kCols> mine = quarter_of<kRows, kCols>(place.simdgroup);
  threadgroup float* strip = strips + place.simdgroup * (4 * kCols);
  for (int down = 0; down < Quarter<kRows, kCols>::kDown; ++down) {
    thread simdgroup_matrix<float, 8, 8>* row = sums + down * Quarter<kRows, kCols>::kAcross;
    simdgroup_barrier(mem_flags::mem_threadgroup);
    for (int i = 0; i < Quarter<kRows, kCols>::kAcross; ++i) {
      simdgroup_store(row[i], strip + i * 8, kCols / 2);
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = place.lane; i < uint(4 * kCols); i += 32) {
      const float value = visit.take(strip[i], mine.row + uint(down) * 8 + i / (kCols / 2),
                                   mine.col + i % (kCols / 2));
      if (kEdits) strip[i] = value;
    }
    if (!kEdits) continue;
    simdgroup_barrier(mem_flags::mem_threadgroup);
    for (int i = 0; i < Quarter<kRows, kCols>::kAcross; ++i) {
      simdgroup_load(row[i], strip + i * 8, kCols / 2);
    }
  }
}

// Writes y = drop(sum) + bias.
template <typename Y, typename BiasOf, bool kDrops>
struct StoreY {
  float take(float sum, uint tile_row, uint tile_col) const {
    const uint row = place.row + tile_row, col = place.col + tile_col;
    const ulong element = ulong(row) * cols + col;
    if (row < rows && col < cols) y[element] = Y(dropout.apply(sum, element) + bias.at(col));
    return sum;
  }
  device Y* y;
  BiasOf bias;
  Dropout<kDrops> dropout;
  TilePlace place;
  uint rows;
  uint cols;
};
