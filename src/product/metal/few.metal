// Few rows, as when text is generated one token at a time: all the work is to read W.

// Columns of y that a simdgroup makes, and elements next to each other that a lane reads.
constant constexpr int kFewColumns = 4;
constant constexpr int kFewElements = 4;

// h of all kRows rows, made by every threadgroup for itself: its simdgroups share out the depth, and their
// parts are added in their order.
template <typename T, int kRank, int kRows, int kSimdgroups, typename X, typename A>
void few_shrink(X x, A a, uint depth, uint index, uint simdgroup, uint lane,
                threadgroup float* parts, threadgroup float* h_block) {
  for (int row = 0; row < kRows; ++row) {
    for (int first = 0; first < kRank; first += kShrinkColumns) {
      float sums[kShrinkColumns];
      for (int j = 0; j < kShrinkColumns; ++j) sums[j] = 0.0f;
      for (uint k = simdgroup * 32 + lane; k < depth; k += kSimdgroups * 32) {
        const float value = float(T(float(x[uint(row) * depth + k])));
        for (int j = 0; j < kShrinkColumns && first + j < kRank; ++j) {
          sums[j] = fma(value, float(T(a.get(k, uint(first + j)))), sums[j]);
        }
      }
      for (int j = 0; j < kShrinkColumns; ++j) {
        const float sum = simd_sum(sums[j]);
        if (uint(j) == lane && first + j < kRank) {
          parts[(simdgroup * kRows + uint(row)) * kRank + uint(first + j)] = sum;
        }
      }
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint i = index; i < uint(kRows * kRank); i += kSimdgroups * 32) {
    float sum = 0.0f;
    for (int part = 0; part < kSimdgroups; ++part) sum += parts[part * kRows * kRank + int(i)];
    h_block[i] = sum;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

// y = x*W + bias + scaling*h*B: lanes go along a row of W and then, as more steps of the same sums, along
// the rank, for all rows of x from one read of W and B.
template <typename T, typename Y, int kRows, typename X, typename W, typename H, typename B,
          typename BiasOf>
void few_columns(X x, W w, uint depth, H h, B b, uint rank, float scaling, BiasOf bias,
                     device Y* y, uint cols, uint first_col, uint lane) {
  if (first_col >= cols) return;
  float sums[kRows * kFewColumns];
  for (int i = 0; i < kRows * kFewColumns; ++i) sums[i] = 0.0f;
  for (uint begin = lane * kFewElements; begin < depth; begin += 32 * kFewElements) {
    for (uint k = begin; k < min(begin + kFewElements, depth); ++k) {
      float values[kRows];
      for (int row = 0; row < kRows; ++row) values[row] = float(T(float(x[uint(row) * depth + k])));
      for (int c = 0; c < kFewColumns; ++c) {
        const uint col = min(first_col + uint(c), cols - 1);
        const float weight = float(T(float(w[ulong(col) * depth + k])));
        for (int row = 0; row < kRows; ++row) {
          sums[row * kFewColumns + c] = fma(values[row], weight, sums[row * kFewColumns + c]);
        }
      }
    }
  }
  for (uint j = lane; j < rank; j += 32) {
    for (int c = 0; c < kFewColumns; ++c) {
      const uint col = min(first_col + uint(c), cols - 1);
      const float weight = float(T(b.get(j, col)));
      for (int row = 0; row < kRows; ++row) {
        const float value = float(T(scaling * h[uint(row) * rank + j]));
        sums[row * kFewColumns + c] = fma(value, weight, sums[row * kFewColumns + c]);
      }
    }
  }
  for (int i = 0; i < kRows * kFewColumns; ++i) {
    const float sum = simd_sum(sums[i]);
    const uint col = first_col + uint(i % kFewColumns);
    if (uint(i) % 32 == lane && col < cols) {
      y[ulong(i / kFewColumns) * cols + col] = Y(sum + bias.at(col));
    }
  }
}

struct ProductScalars {
  long a_row, a_col, b_row, b_col;  // strides
  uint rows, depth, cols, rank;
  float scaling;
  uint threshold;
  float keep;
};

// Of rank 0, h and B are not read.
template <typename T, typename X, typename W, typename B0, typename B, bool kBias, int kRows>
[[kernel]] void product_few(
    const device X* x [[buffer(0)]], const device W* w [[buffer(1)]],
    const device B0* bias [[buffer(2)]], const device B* b [[buffer(3)]],
    const device float* h [[buffer(4)]], device X* y [[buffer(5)]],
    constant const ProductScalars& scalars [[buffer(6)]],
    uint group [[threadgroup_position_in_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
  const View<const device B*> view = {b, scalars.b_row, scalars.b_col};
  const Bias<const device B0*, kBias> added = {bias};
  few_columns<T, X, kRows>(x, w, scalars.depth, h, view, scalars.rank, scalars.scaling, added, y,
                           scalars.cols, group * 32 + simdgroup * kFewColumns, lane);
}

// Makes h itself.
template <typename T, typename X, typename W, typename B0, typename B, bool kBias, int kRows,
          typename A, int kRank>
[[kernel]] void product_few_shrinks(
    const device X* x [[buffer(0)]], const device W* w [[buffer(1)]],
    const device B0* bias [[buffer(2)]], const device B* b [[buffer(3)]],
    const device A* a [[buffer(4)]], device X* y [[buffer(5)]], device float* h [[buffer(6)]],
    constant const ProductScalars& scalars [[buffer(7)]],
    uint group [[threadgroup_position_in_grid]], uint index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float parts[8 * kRows * kRank];
  threadgroup float h_block[kRows * kRank];
  const View<const device A*> view_a = {a, scalars.a_row, scalars.a_col};
  few_shrink<T, kRank, kRows, 8>(x, view_a, scalars.depth, index, simdgroup, lane, parts, h_block);
  for (uint i = index; i < uint(kRows * kRank) && group == 0; i += 256) h[i] = h_block[i];
  const View<const device B*> view = {b, scalars.b_row, scalars.b_col};
  const Bias<const device B0*, kBias> added = {bias};
  few_columns<T, X, kRows>(x, w, scalars.depth, h_block, view, kRank, scalars.scaling, added, y,
                           scalars.cols, group * 32 + simdgroup * kFewColumns, lane);
}
