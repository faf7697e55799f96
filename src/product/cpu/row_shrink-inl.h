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

#include "backend/cpu/vectors-inl.h"
#include "product/cpu/kernels.h"
#include "product/cpu/shape-inl.h"
#include "product/cpu/shrink-inl.h"

HWY_BEFORE_NAMESPACE();
namespace graft::cpu {
namespace HWY_NAMESPACE {

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

// block [Rows][kShrink]: kShrink columns fill half a vector, so that one holds two steps of k.
template <int Rows>
HWY_INLINE void RowShrinkHalf(const float* const (&row)[Rows], std::int64_t k,
                              const float* HWY_RESTRICT a, float* HWY_RESTRICT block) {
  const D d;
  V acc[Rows];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) acc[i] = hn::Zero(d);
  // Pointers to the ends of rows and an index up to zero leave a register for each of 14 rows.
  const std::int64_t even = k / 2 * 2;
  const float* ends[Rows];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) ends[i] = row[i] + even;
  for (std::int64_t s = -even; s < 0; s += 2, a += 2 * kShrink) {
    const V pairs = LoadColumnPairs(a);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) acc[i] = hn::MulAdd(BroadcastPair(ends[i] + s), pairs, acc[i]);
  }
  if (even < k) {
    HWY_ALIGN float last[2 * kShrink] = {};
    std::copy_n(a, kShrink, last);
    const V pairs = LoadColumnPairs(last);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) acc[i] = hn::MulAdd(hn::Set(d, *ends[i]), pairs, acc[i]);
  }
  const D8 d8;
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
    const V sums = hn::Add(hn::ConcatEven(d, acc[i], acc[i]), hn::ConcatOdd(d, acc[i], acc[i]));
    hn::Store(hn::LowerHalf(d8, sums), d8, block + i * kShrink);
  }
}
#endif

// block [Rows][Vectors · kLanes]: whole vectors of columns.
template <int Rows, int Vectors>
HWY_INLINE void RowShrinkWhole(const float* const (&row)[Rows], std::int64_t k,
                               const float* HWY_RESTRICT a, float* HWY_RESTRICT block) {
  const D d;
  V acc[Rows][Vectors];
  const float* ends[Rows];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
    ends[i] = row[i] + k;
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; ++v) acc[i][v] = hn::Zero(d);
  }
  for (std::int64_t s = -k; s < 0; ++s, a += Vectors * kLanes) {
    V columns[Vectors];
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; ++v) columns[v] = hn::LoadU(d, a + v * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const V xi = hn::Set(d, ends[i][s]);
#pragma GCC unroll 16
      for (int v = 0; v < Vectors; ++v) acc[i][v] = hn::MulAdd(xi, columns[v], acc[i][v]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; ++v) {
      hn::Store(acc[i][v], d, block + (i * Vectors + v) * kLanes);
    }
  }
}

// h [group][kStride] for one group of columns and `Rows` rows.
template <int Rows>
void RowShrinkGroup(const Source& x, std::int64_t k, const float* a, int group, float* h) {
  HWY_ALIGN float block[Rows * kWideShrink];
  const float* row[Rows];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) row[i] = static_cast<const float*>(x.data) + i * x.row_stride;
#if HWY_TARGET == HWY_AVX3
  if (group == kShrink) {
    RowShrinkHalf<Rows>(row, k, a, block);
    return TransposeToH(block, Rows, kShrink, h);
  }
#endif
  RowShrinkWhole<Rows, kWideShrink / kLanes>(row, k, a, block);
  TransposeToH(block, Rows, group, h);
}

template <int... RowsMinus1>
void RowShrinkByRows(const Source& x, int rows, std::int64_t k, const float* a, int group, float* h,
                     std::integer_sequence<int, RowsMinus1...>) {
  using Group = void (*)(const Source&, std::int64_t, const float*, int, float*);
  static constexpr Group kGroups[] = {&RowShrinkGroup<RowsMinus1 + 1>...};
  kGroups[rows - 1](x, k, a, group, h);
}

inline void RowShrink(const Source& x, int rows, std::int64_t k, const void* packed_a,
                      std::int64_t rank, float* h) {
  const float* const a = static_cast<const float*>(packed_a);
  for (std::int64_t j = 0; j < rank; j += ShrinkGroup(rank - j)) {
    RowShrinkByRows(x, rows, k, a + j * k, ShrinkGroup(rank - j), h + j * kStride,
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
