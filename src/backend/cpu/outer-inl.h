// Outer products over rows: the gradients of A and B.
#if defined(GRAFT_CPU_OUTER_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GRAFT_CPU_OUTER_INL_H_
#undef GRAFT_CPU_OUTER_INL_H_
#else
#define GRAFT_CPU_OUTER_INL_H_
#endif

#include <cstdint>

#include "backend/cpu/kernels.h"
#include "backend/cpu/pack-inl.h"
#include "backend/cpu/vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace graft::cpu {
namespace HWY_NAMESPACE {

// kShrink-many coefficients × Vectors vectors of columns, over all m rows.
template <int Coefficients, int Vectors>
HWY_INLINE void OuterBlock(const float* HWY_RESTRICT coefficients, std::int64_t rank,
                           const Source& x, std::int64_t m, std::int64_t col,
                           float* HWY_RESTRICT out, std::int64_t ld) {
  const D d;
  V acc[Coefficients][Vectors];
#pragma GCC unroll 16
  for (int j = 0; j < Coefficients; ++j) {
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; ++v) acc[j][v] = hn::Zero(d);
  }
  for (std::int64_t i = 0; i < m; ++i) {
    V row[Vectors];
    if (x.dtype == DType::kFloat32) {
      const float* from = static_cast<const float*>(x.data) + i * x.row_stride + col;
#pragma GCC unroll 16
      for (int v = 0; v < Vectors; ++v) row[v] = hn::LoadU(d, from + v * kLanes);
    } else {
      const hn::Rebind<std::uint16_t, D> du16;
      const std::uint16_t* from =
          static_cast<const std::uint16_t*>(x.data) + i * x.row_stride + col;
#pragma GCC unroll 16
      for (int v = 0; v < Vectors; ++v) {
        const VU wide = hn::PromoteTo(DU(), hn::LoadU(du16, from + v * kLanes));
        row[v] = hn::BitCast(d, hn::ShiftLeft<16>(wide));
      }
    }
    const float* c = coefficients + i * rank;
#pragma GCC unroll 16
    for (int j = 0; j < Coefficients; ++j) {
      const V cj = hn::Set(d, c[j]);
#pragma GCC unroll 16
      for (int v = 0; v < Vectors; ++v) acc[j][v] = hn::MulAdd(cj, row[v], acc[j][v]);
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

// All columns for `Coefficients` rows of the result. The last block may overlap the one before and
// then writes the same values again.
template <int Coefficients>
void OuterRows(const float* coefficients, std::int64_t rank, const Source& x, std::int64_t m,
               std::int64_t cols, float* out, std::int64_t ld) {
  constexpr int kVectors = kRows >= 14 ? 3 : (Coefficients >= 4 ? 2 : 3);
  std::int64_t col = 0;
  for (; col + kVectors * kLanes <= cols; col += kVectors * kLanes) {
    OuterBlock<Coefficients, kVectors>(coefficients, rank, x, m, col, out, ld);
  }
  for (; col + kLanes <= cols; col += kLanes) {
    OuterBlock<Coefficients, 1>(coefficients, rank, x, m, col, out, ld);
  }
  if (col < cols && cols >= kLanes) {
    OuterBlock<Coefficients, 1>(coefficients, rank, x, m, cols - kLanes, out, ld);
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

inline void Outer(const float* coefficients, std::int64_t rank, const Source& x, std::int64_t m,
                  std::int64_t cols, float* out, std::int64_t ld) {
  constexpr int kMost = kRows >= 14 ? 8 : 4;
  std::int64_t j = 0;
  for (; j + kMost <= rank; j += kMost) {
    OuterRows<kMost>(coefficients + j, rank, x, m, cols, out + j * ld, ld);
  }
  for (; j + 2 <= rank; j += 2) {
    OuterRows<2>(coefficients + j, rank, x, m, cols, out + j * ld, ld);
  }
  if (j < rank) OuterRows<1>(coefficients + j, rank, x, m, cols, out + j * ld, ld);
}

}  // namespace HWY_NAMESPACE
}  // namespace graft::cpu
HWY_AFTER_NAMESPACE();

#endif  // Highway's toggle
