// The shrink, h = x · A, straight from rows of float32 x: lanes along the rank, one broadcast a
// row. Where no base product wants x packed, this saves the packing, and wastes no lanes on the
// rows that a panel lacks.
#if defined(GRAFT_CPU_ROW_SHRINK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GRAFT_CPU_ROW_SHRINK_INL_H_
#undef GRAFT_CPU_ROW_SHRINK_INL_H_
#else
#define GRAFT_CPU_ROW_SHRINK_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "backend/cpu/kernels.h"
#include "backend/cpu/vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace graft::cpu {
namespace HWY_NAMESPACE {

// kShrink columns of A fill kColumnVectors vectors, or, on AVX-512, half of one: then a vector
// holds two steps of k, even lanes the first.
constexpr int kColumnVectors = kShrink > kLanes ? kShrink / kLanes : 1;
constexpr int kRowSteps = kLanes > kShrink ? 2 : 1;
static_assert(kShrink == kLanes * kColumnVectors / kRowSteps);

#if HWY_TARGET == HWY_AVX3
// Columns of two steps, (A[k][j], A[k + 1][j]) in each pair of lanes.
HWY_INLINE V LoadColumnPairs(const float* two_steps) {
  HWY_ALIGN static constexpr std::int32_t kPairs[16] = {0, 8,  1, 9,  2, 10, 3, 11,
                                                        4, 12, 5, 13, 6, 14, 7, 15};
  const D d;
  return hn::TableLookupLanes(hn::LoadU(d, two_steps), hn::SetTableIndices(d, kPairs));
}

// x[k], x[k + 1] in every pair of lanes.
HWY_INLINE V BroadcastPair(const float* x) {
  const hn::Repartition<double, D> d64;
  double pair;
  std::memcpy(&pair, x, sizeof(pair));
  return hn::BitCast(D(), hn::Set(d64, pair));
}
#endif

// One group of columns for `Rows` rows; h [kShrink][kStride], of which `cols` are stored.
template <int Rows>
void RowShrinkGroup(const Source& x, std::int64_t k, const float* HWY_RESTRICT a, std::int64_t cols,
                    float* HWY_RESTRICT h) {
  const D d;
  V acc[Rows][kColumnVectors];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 16
    for (int v = 0; v < kColumnVectors; ++v) acc[i][v] = hn::Zero(d);
  }
  const float* HWY_RESTRICT rows = static_cast<const float*>(x.data);
  HWY_ALIGN float out[Rows][kShrink];
#if HWY_TARGET == HWY_AVX3
  // Pointers to the ends of rows and an index up to zero leave a register for each of 14 rows.
  const std::int64_t even = k / 2 * 2;
  const float* ends[Rows];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) ends[i] = rows + i * x.row_stride + even;
  for (std::int64_t s = -even; s < 0; s += 2, a += 2 * kShrink) {
    const V pairs = LoadColumnPairs(a);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i)
      acc[i][0] = hn::MulAdd(BroadcastPair(ends[i] + s), pairs, acc[i][0]);
  }
  if (even < k) {
    HWY_ALIGN float last[2 * kShrink] = {};
    std::copy_n(a, kShrink, last);
    const V pairs = LoadColumnPairs(last);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) acc[i][0] = hn::MulAdd(hn::Set(d, *ends[i]), pairs, acc[i][0]);
  }
  const hn::FixedTag<float, 8> d8;
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
    const V sums =
        hn::Add(hn::ConcatEven(d, acc[i][0], acc[i][0]), hn::ConcatOdd(d, acc[i][0], acc[i][0]));
    hn::Store(hn::LowerHalf(d8, sums), d8, out[i]);
  }
#else
  for (std::int64_t s = 0; s < k; ++s) {
    V columns[kColumnVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kColumnVectors; ++v) {
      columns[v] = hn::LoadU(d, a + s * kShrink + v * kLanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const V xi = hn::Set(d, rows[i * x.row_stride + s]);
#pragma GCC unroll 16
      for (int v = 0; v < kColumnVectors; ++v) {
        acc[i][v] = hn::MulAdd(xi, columns[v], acc[i][v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 16
    for (int v = 0; v < kColumnVectors; ++v) hn::Store(acc[i][v], d, out[i] + v * kLanes);
  }
#endif
  for (int j = 0; j < cols; ++j) {
    for (int i = 0; i < Rows; ++i) h[j * kStride + i] = out[i][j];
  }
}

template <int... RowsMinus1>
void RowShrinkByRows(const Source& x, int rows, std::int64_t k, const float* a, std::int64_t cols,
                     float* h, std::integer_sequence<int, RowsMinus1...>) {
  using Group = void (*)(const Source&, std::int64_t, const float*, std::int64_t, float*);
  static constexpr Group kGroups[] = {&RowShrinkGroup<RowsMinus1 + 1>...};
  kGroups[rows - 1](x, k, a, cols, h);
}

inline void RowShrink(const Source& x, int rows, std::int64_t k, const void* packed_a,
                      std::int64_t rank, float* h) {
  const float* group = static_cast<const float*>(packed_a);
  for (std::int64_t j = 0; j < rank; j += kShrink, group += k * kShrink) {
    const std::int64_t cols = std::min<std::int64_t>(kShrink, rank - j);
    RowShrinkByRows(x, rows, k, group, cols, h + j * kStride,
                    std::make_integer_sequence<int, kRows>());
  }
  for (std::int64_t j = 0; j < rank; ++j) {
    std::fill(h + j * kStride + rows, h + (j + 1) * kStride, 0.0f);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace graft::cpu
HWY_AFTER_NAMESPACE();

#endif  // Highway's toggle
