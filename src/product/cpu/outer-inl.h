// Outer products over rows: the gradients of A and B.
#if defined(GRAFT_CPU_OUTER_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GRAFT_CPU_OUTER_INL_H_
#undef GRAFT_CPU_OUTER_INL_H_
#else
#define GRAFT_CPU_OUTER_INL_H_
#endif

#include <cstdint>

#include "backend/cpu/memory-inl.h"
#include "backend/cpu/vectors-inl.h"
#include "hwy/cache_control.h"
#include "product/cpu/kernels.h"
#include "product/cpu/shape-inl.h"
#include "weight/cpu/pack-inl.h"

HWY_BEFORE_NAMESPACE();
namespace graft::cpu {
namespace HWY_NAMESPACE {

// A block walks down its columns, a row's width apart: no hardware prefetcher follows. While it is
// at it, ask for what the next block will read.
template <int Vectors, class T>
HWY_INLINE void PrefetchNextBlock(const T* row, const T* next) {
  constexpr int kPerLine = 64 / static_cast<int>(sizeof(T));
#pragma GCC unroll 16
  for (int i = 0; i < Vectors * kLanes; i += kPerLine) {
    hwy::Prefetch(row + Vectors * kLanes + i);
    if (next != row) hwy::Prefetch(next + Vectors * kLanes + i);
  }
}

// A block of `Coefficients` × Vectors vectors of columns over all m rows; `coefficients` is packed
// [step][Coefficients], a step being Multiply::kRowsPerOuterStep rows.
template <class Multiply, int Coefficients, int Vectors>
HWY_INLINE void OuterBlock(const typename Multiply::C* HWY_RESTRICT coefficients, const Source& x,
                           std::int64_t m, std::int64_t col, float* HWY_RESTRICT out,
                           std::int64_t ld) {
  constexpr int kStep = Multiply::kRowsPerOuterStep;
  const D d;
  V acc[Coefficients][Vectors];
#pragma GCC unroll 16
  for (int j = 0; j < Coefficients; ++j) {
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; ++v) acc[j][v] = hn::Zero(d);
  }
  const std::int64_t steps = (m + kStep - 1) / kStep;
  if (x.dtype == DType::kFloat32) {
    const float* HWY_RESTRICT row = static_cast<const float*>(x.data) + col;
    for (std::int64_t s = 0; s < steps; ++s) {
      // An odd last row is paired with itself: its partner's coefficients are zero.
      const float* next = s * kStep + 1 < m ? row + x.row_stride : row;
      PrefetchNextBlock<Vectors>(row, kStep == 2 ? next : row);
      Multiply::template OuterStep<Coefficients, Vectors>(row, next,
                                                          coefficients + s * Coefficients, acc);
      row += kStep * x.row_stride;
    }
  } else {
    const hwy::bfloat16_t* HWY_RESTRICT row = static_cast<const hwy::bfloat16_t*>(x.data) + col;
    for (std::int64_t s = 0; s < steps; ++s) {
      const hwy::bfloat16_t* next = s * kStep + 1 < m ? row + x.row_stride : row;
      PrefetchNextBlock<Vectors>(row, kStep == 2 ? next : row);
      Multiply::template OuterStep<Coefficients, Vectors>(row, next,
                                                          coefficients + s * Coefficients, acc);
      row += kStep * x.row_stride;
    }
  }
#pragma GCC unroll 16
  for (int j = 0; j < Coefficients; ++j) {
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; ++v) {
      hn::StoreU(acc[j][v], d, out + j * ld + col + v * kLanes);
    }
  }
}

// One row in float32.
template <int Coefficients, int Vectors, class T>
HWY_INLINE void OuterStepF32(const T* HWY_RESTRICT row, const float* HWY_RESTRICT coefficients,
                             V (&acc)[Coefficients][Vectors]) {
  V x[Vectors];
#pragma GCC unroll 16
  for (int v = 0; v < Vectors; ++v) x[v] = Load(row + v * kLanes);
#pragma GCC unroll 16
  for (int j = 0; j < Coefficients; ++j) {
    const V cj = hn::Set(D(), coefficients[j]);
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; ++v) acc[j][v] = hn::MulAdd(cj, x[v], acc[j][v]);
  }
}

// All columns for `Coefficients` rows of the result.
template <class Multiply, int Coefficients>
void OuterRows(const float* coefficients, std::int64_t rank, const Source& x, std::int64_t m,
               std::int64_t cols, float* out, std::int64_t ld) {
  constexpr int kVectors = kRows >= 14 ? 3 : (Coefficients >= 4 ? 2 : 3);
  constexpr int kStep = Multiply::kRowsPerOuterStep;
  HWY_ALIGN typename Multiply::C packed[kMostOuterRows / kStep * Coefficients];
  for (std::int64_t i = 0; i < m; i += kStep) {
    static constexpr float kNone[Coefficients] = {};
    const float* c = coefficients + i * rank;
    Multiply::template PackCoefficients<Coefficients>(c, i + 1 < m ? c + rank : kNone,
                                                      packed + i / kStep * Coefficients);
  }

  std::int64_t col = 0;
  for (; col + kVectors * kLanes <= cols; col += kVectors * kLanes) {
    OuterBlock<Multiply, Coefficients, kVectors>(packed, x, m, col, out, ld);
  }
  for (; col + kLanes <= cols; col += kLanes) {
    OuterBlock<Multiply, Coefficients, 1>(packed, x, m, col, out, ld);
  }
  if (col < cols && cols >= kLanes) {
    // Overlaps the block before, and writes the same values there again.
    OuterBlock<Multiply, Coefficients, 1>(packed, x, m, cols - kLanes, out, ld);
    return;
  }
  for (; col < cols; ++col) {
    for (int j = 0; j < Coefficients; ++j) {
      float sum = 0;
      for (std::int64_t i = 0; i < m; ++i) sum += coefficients[i * rank + j] * LoadOne(x, i, col);
      out[j * ld + col] = sum;
    }
  }
}

template <class Multiply>
void Outer(const float* coefficients, std::int64_t rank, const Source& x, std::int64_t m,
           std::int64_t cols, float* out, std::int64_t ld) {
  constexpr int kMost = kRows >= 14 ? 8 : 4;
  std::int64_t j = 0;
  for (; j + kMost <= rank; j += kMost) {
    OuterRows<Multiply, kMost>(coefficients + j, rank, x, m, cols, out + j * ld, ld);
  }
  for (; j + 2 <= rank; j += 2) {
    OuterRows<Multiply, 2>(coefficients + j, rank, x, m, cols, out + j * ld, ld);
  }
  if (j < rank) OuterRows<Multiply, 1>(coefficients + j, rank, x, m, cols, out + j * ld, ld);
}

}  // namespace HWY_NAMESPACE
}  // namespace graft::cpu
HWY_AFTER_NAMESPACE();

#endif  // Highway's toggle
