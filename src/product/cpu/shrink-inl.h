// The shrink, h = x · A, from a row panel: lanes along rows.
#if defined(GRAFT_CPU_SHRINK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GRAFT_CPU_SHRINK_INL_H_
#undef GRAFT_CPU_SHRINK_INL_H_
#else
#define GRAFT_CPU_SHRINK_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "backend/cpu/vectors-inl.h"
#include "product/cpu/kernels.h"
#include "product/cpu/shape-inl.h"
#include "weight/cpu/pack-inl.h"

HWY_BEFORE_NAMESPACE();
namespace graft::cpu {
namespace HWY_NAMESPACE {

// Floats of h of one panel: whole groups.
inline std::int64_t HPanelSize(std::int64_t rank) {
  return (rank + kWideShrink - 1) / kWideShrink * kWideShrink * kStride;
}

template <class Multiply>
std::int64_t PackedASize(std::int64_t k, std::int64_t rank) {
  const std::int64_t steps = (k + Multiply::kPerStep - 1) / Multiply::kPerStep;
  const std::int64_t columns = (rank + kShrink - 1) / kShrink * kShrink;
  return columns * steps * Multiply::kXPerStep;
}

template <class Multiply>
void PackA(const Source& a, std::int64_t k, std::int64_t rank, void* packed) {
  const std::int64_t column_size = PackedASize<Multiply>(k, 1) / kShrink;
  for (std::int64_t j = 0; j < rank; j += ShrinkGroup(rank - j)) {
    const int group = ShrinkGroup(rank - j);
    const int cols = static_cast<int>(std::min<std::int64_t>(group, rank - j));
    Multiply::PackX(a.transposed().at(j, 0), cols, k, group,
                    static_cast<std::uint32_t*>(packed) + j * column_size);
  }
}

// kShrink columns, lanes along rows. Vectors of x lie x_stride apart in a step and those of h
// h_stride: they are the next lanes of one panel, or other panels.
template <class Multiply, int Vectors>
HWY_INLINE void ShrinkColumns(const typename Multiply::X* HWY_RESTRICT x, std::int64_t x_stride,
                              const typename Multiply::X* HWY_RESTRICT a, std::int64_t steps,
                              float* HWY_RESTRICT h, std::int64_t h_stride) {
  // Steps go round the chains: kShrink sums alone may be too few to hide a multiply-add's latency.
  constexpr int kChains = Vectors > 1 ? 1 : Multiply::kShrinkChains;
  const D d;
  V acc[kChains][kShrink][Vectors];
#pragma GCC unroll 16
  for (int c = 0; c < kChains; ++c) {
#pragma GCC unroll 16
    for (int j = 0; j < kShrink; ++j) {
#pragma GCC unroll 16
      for (int v = 0; v < Vectors; ++v) acc[c][j][v] = hn::Zero(d);
    }
  }
  std::int64_t s = 0;
  for (; s + kChains <= steps; s += kChains) {
#pragma GCC unroll 16
    for (int c = 0; c < kChains; ++c) {
      Multiply::ShrinkStep(x + (s + c) * kStride, x_stride, a + (s + c) * kShrink, acc[c]);
    }
  }
  for (; s < steps; ++s) {
    Multiply::ShrinkStep(x + s * kStride, x_stride, a + s * kShrink, acc[0]);
  }
#pragma GCC unroll 16
  for (int j = 0; j < kShrink; ++j) {
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; ++v) {
      V sum = acc[0][j][v];
#pragma GCC unroll 16
      for (int c = 1; c < kChains; ++c) sum = hn::Add(sum, acc[c][j][v]);
      hn::StoreU(sum, d, h + j * kStride + v * h_stride);
    }
  }
}

// h [cols][kStride] = block [rows][cols] transposed, cols a multiple of 4.
HWY_INLINE void TransposeToH(const float* block, int rows, int cols, float* h) {
  PackFloatRows<false>(D(), {block, DType::kFloat32, cols, 1, 0}, rows, cols, kStride, h);
}

// kWideShrink columns, lanes along columns.
template <class Multiply>
HWY_INLINE void ShrinkWide(const typename Multiply::X* HWY_RESTRICT x,
                           const typename Multiply::X* HWY_RESTRICT a, std::int64_t steps,
                           float* HWY_RESTRICT h) {
  const D d;
  V acc[kRows];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) acc[i] = hn::Zero(d);
  for (std::int64_t s = 0; s < steps; ++s) {
    Multiply::ShrinkWideStep(x + s * kStride, a + s * kWideShrink, acc);
  }
  HWY_ALIGN float block[kRows * kWideShrink];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) hn::Store(acc[i], d, block + i * kWideShrink);
  TransposeToH(block, kRows, kWideShrink, h);
}

template <class Multiply>
void Shrink(const void* x_panels, int panels, std::int64_t k, const void* packed_a,
            std::int64_t rank, float* HWY_RESTRICT h) {
  using X = typename Multiply::X;
  const std::int64_t steps =
      (k + Multiply::kPerStep - 1) / Multiply::kPerStep * Multiply::kXPerStep;
  const std::int64_t x_size = steps * kStride, h_size = HPanelSize(rank);
  const X* const x = static_cast<const X*>(x_panels);
  const X* const a = static_cast<const X*>(packed_a);
  for (std::int64_t j = 0; j < rank; j += ShrinkGroup(rank - j)) {
    if constexpr (kWideShrink > kShrink) {
      if (ShrinkGroup(rank - j) == kWideShrink) {
        for (int p = 0; p < panels; ++p) {
          ShrinkWide<Multiply>(x + p * x_size, a + j * steps, steps, h + p * h_size + j * kStride);
        }
        continue;
      }
    }
    if (panels == kShrinkPanels && kShrinkPanels > 1) {
      ShrinkColumns<Multiply, kShrinkPanels>(x, x_size, a + j * steps, steps, h + j * kStride,
                                             h_size);
    } else {
      for (int p = 0; p < panels; ++p) {
        ShrinkColumns<Multiply, kStride / kLanes>(x + p * x_size, kLanes, a + j * steps, steps,
                                                  h + p * h_size + j * kStride, kLanes);
      }
    }
  }
}

// One float32 step of the shrink, for the two multiply types that keep x as floats.
template <int Vectors>
HWY_INLINE void ShrinkStepF32(const float* HWY_RESTRICT x, std::int64_t x_stride,
                              const float* HWY_RESTRICT a, V (&acc)[kShrink][Vectors]) {
  const D d;
  V xv[Vectors];
#pragma GCC unroll 16
  for (int v = 0; v < Vectors; ++v) xv[v] = hn::LoadU(d, x + v * x_stride);
#pragma GCC unroll 16
  for (int j = 0; j < kShrink; ++j) {
    const V aj = hn::Set(d, a[j]);
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; ++v) acc[j][v] = hn::MulAdd(xv[v], aj, acc[j][v]);
  }
}

// And of the shrink of a vector's worth of columns.
HWY_INLINE void ShrinkWideStepF32(const float* HWY_RESTRICT x, const float* HWY_RESTRICT a,
                                  V (&acc)[kRows]) {
  const D d;
  const V columns = hn::LoadU(d, a);
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) acc[i] = hn::MulAdd(hn::Set(d, x[i]), columns, acc[i]);
}

// scaling·h as a row panel: h is [rank][kStride] already, so this is the packing of h's transpose.
template <class Multiply>
void LowRankPanel(const float* HWY_RESTRICT h, std::int64_t rank, float scaling, void* panel) {
  constexpr std::int64_t kMost = kMaxLoraRank;
  HWY_ALIGN float scaled[kMost * kStride];
  const D d;
  for (std::int64_t i = 0; i < rank * kStride; i += kLanes) {
    hn::Store(hn::Mul(hn::Set(d, scaling), hn::LoadU(d, h + i)), d, scaled + i);
  }
  Multiply::PackX({scaled, DType::kFloat32, 1, kStride}, kStride, rank, kStride, panel);
}

}  // namespace HWY_NAMESPACE
}  // namespace graft::cpu
HWY_AFTER_NAMESPACE();

#endif  // Highway's toggle
