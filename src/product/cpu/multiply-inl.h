// How a product multiplies: its packed types, one step over K, and the table of kernels made of it.
#if defined(GRAFT_CPU_MULTIPLY_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GRAFT_CPU_MULTIPLY_INL_H_
#undef GRAFT_CPU_MULTIPLY_INL_H_
#else
#define GRAFT_CPU_MULTIPLY_INL_H_
#endif

#include <cstdint>

#include "backend/cpu/vectors-inl.h"
#include "product/cpu/dropout-inl.h"
#include "product/cpu/kernels.h"
#include "product/cpu/outer-inl.h"
#include "product/cpu/row_shrink-inl.h"
#include "product/cpu/shape-inl.h"
#include "product/cpu/shrink-inl.h"
#include "product/cpu/tile-inl.h"
#include "product/cpu/transpose-inl.h"
#include "weight/cpu/pack-inl.h"

HWY_BEFORE_NAMESPACE();
namespace graft::cpu {
namespace HWY_NAMESPACE {

// What the two kinds below share: x is kept as floats, so shrink and outer products are float32.
struct FloatOperands {
  using X = float;

  static constexpr int kShrinkChains = 1;
  template <int Vectors>
  static HWY_INLINE void ShrinkStep(const float* HWY_RESTRICT x, std::int64_t x_stride,
                                    const float* HWY_RESTRICT a, V (&acc)[kShrink][Vectors]) {
    ShrinkStepF32(x, x_stride, a, acc);
  }
  static HWY_INLINE void ShrinkWideStep(const float* HWY_RESTRICT x, const float* HWY_RESTRICT a,
                                        V (&acc)[kRows]) {
    ShrinkWideStepF32(x, a, acc);
  }

  // Outer products take one row at a time.
  static constexpr int kRowsPerOuterStep = 1;
  using C = float;
  template <int Coefficients>
  static HWY_INLINE void PackCoefficients(const float* c, const float*, float* packed) {
    for (int j = 0; j < Coefficients; ++j) packed[j] = c[j];
  }

  template <int Coefficients, int Vectors, class T>
  static HWY_INLINE void OuterStep(const T* HWY_RESTRICT row, const T*,
                                   const float* HWY_RESTRICT coefficients,
                                   V (&acc)[Coefficients][Vectors]) {
    OuterStepF32(row, coefficients, acc);
  }
};

struct MultiplyF32 : FloatOperands {
  static constexpr PanelFormat kPanels = kFloatPanels;
  static constexpr int kPerStep = kPanels.k_per_step;
  static constexpr int kXPerStep = 1;
  using W = float;

  template <int Rows>
  static HWY_INLINE void Step(const float* HWY_RESTRICT x, const float* HWY_RESTRICT w,
                              V (&acc)[Rows][2]) {
    const D d;
    const V w0 = hn::LoadU(d, w);
    const V w1 = hn::LoadU(d, w + kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const V xi = hn::Set(d, x[i]);
      acc[i][0] = hn::MulAdd(xi, w0, acc[i][0]);
      acc[i][1] = hn::MulAdd(xi, w1, acc[i][1]);
    }
  }

  static void PackX(const Source& x, int rows, std::int64_t k, int stride, void* panel) {
    PackFloats<false>(x, rows, k, stride, panel);
  }
};

// bfloat16 where the CPU has no dot product for it: pairs of W widen exactly to two float32 steps.
struct MultiplyWidened : FloatOperands {
  static constexpr PanelFormat kPanels = kPairPanels<PairByRounding>;
  static constexpr int kPerStep = kPanels.k_per_step;
  static constexpr int kXPerStep = 2;
  using W = std::uint32_t;

  template <int Rows>
  static HWY_INLINE void Step(const float* HWY_RESTRICT x, const std::uint32_t* HWY_RESTRICT w,
                              V (&acc)[Rows][2]) {
    const D d;
    const DU du;
    const VU pair0 = hn::LoadU(du, w);
    const VU pair1 = hn::LoadU(du, w + kLanes);
    const V even0 = hn::BitCast(d, hn::ShiftLeft<16>(pair0));
    const V even1 = hn::BitCast(d, hn::ShiftLeft<16>(pair1));
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const V xi = hn::Set(d, x[i]);
      acc[i][0] = hn::MulAdd(xi, even0, acc[i][0]);
      acc[i][1] = hn::MulAdd(xi, even1, acc[i][1]);
    }
    const V odd0 = hn::BitCast(d, hn::And(pair0, hn::Set(du, 0xffff0000u)));
    const V odd1 = hn::BitCast(d, hn::And(pair1, hn::Set(du, 0xffff0000u)));
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const V xi = hn::Set(d, x[kStride + i]);
      acc[i][0] = hn::MulAdd(xi, odd0, acc[i][0]);
      acc[i][1] = hn::MulAdd(xi, odd1, acc[i][1]);
    }
  }

  static void PackX(const Source& x, int rows, std::int64_t k, int stride, void* panel) {
    PackFloats<true>(x, rows, k, stride, panel);
  }
};

template <class Multiply>
void PackRows(const Source& x, int rows, std::int64_t k, void* panel) {
  Multiply::PackX(x, rows, k, kStride, panel);
}

template <class Multiply>
const Kernels* MakeKernels() {
  static constexpr Kernels kernels = {
      Multiply::kPanels,
      kRows,
      kStride,
      Multiply::kXPerStep,
      kShrink,
      kWideShrink,
      kShrinkPanels,
      &PackRows<Multiply>,
      &PackA<Multiply>,
      &PackedASize<Multiply>,
      &Shrink<Multiply>,
      &RowShrink,
      &LowRankPanel<Multiply>,
      &RunTile<Multiply>,
      &Outer<Multiply>,
      &DropoutBits,
      &DropPanel<Multiply>,
      &DropRows,
      &Transpose,
      &Add,
  };
  return &kernels;
}

}  // namespace HWY_NAMESPACE
}  // namespace graft::cpu
HWY_AFTER_NAMESPACE();

#endif  // Highway's toggle
