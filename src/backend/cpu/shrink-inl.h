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

#include "backend/cpu/kernels.h"
#include "backend/cpu/vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace graft::cpu {
namespace HWY_NAMESPACE {

template <class Multiply>
std::int64_t PackedASize(std::int64_t k, std::int64_t rank) {
  const std::int64_t steps = (k + Multiply::kPerStep - 1) / Multiply::kPerStep;
  return (rank + kShrink - 1) / kShrink * kShrink * steps * Multiply::kXPerStep;
}

template <class Multiply>
void PackA(const Source& a, std::int64_t k, std::int64_t rank, void* packed) {
  const std::int64_t group_size = PackedASize<Multiply>(k, 1);
  for (std::int64_t j = 0; j < rank; j += kShrink) {
    const int cols = static_cast<int>(std::min<std::int64_t>(kShrink, rank - j));
    Multiply::PackX(a.transposed().at(j, 0), cols, k, kShrink,
                    static_cast<std::uint32_t*>(packed) + j / kShrink * group_size);
  }
}

template <class Multiply>
void Shrink(const void* x_panel, std::int64_t k, const void* packed_a, std::int64_t rank,
            float* HWY_RESTRICT h) {
  constexpr int kVectors = kStride / kLanes;
  using X = typename Multiply::X;
  const D d;
  const std::int64_t steps =
      (k + Multiply::kPerStep - 1) / Multiply::kPerStep * Multiply::kXPerStep;
  const X* HWY_RESTRICT a = static_cast<const X*>(packed_a);
  for (std::int64_t j0 = 0; j0 < rank; j0 += kShrink, a += steps * kShrink) {
    const X* HWY_RESTRICT x = static_cast<const X*>(x_panel);
    V acc[kShrink][kVectors];
#pragma GCC unroll 16
    for (int j = 0; j < kShrink; ++j) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) acc[j][v] = hn::Zero(d);
    }
    for (std::int64_t s = 0; s < steps; ++s) {
      Multiply::template ShrinkStep<kShrink, kVectors>(x + s * kStride, a + s * kShrink, acc);
    }
    HWY_ALIGN float out[kShrink * kStride];
#pragma GCC unroll 16
    for (int j = 0; j < kShrink; ++j) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        hn::Store(acc[j][v], d, out + j * kStride + v * kLanes);
      }
    }
    const std::int64_t cols = std::min<std::int64_t>(kShrink, rank - j0);
    std::memcpy(h + j0 * kStride, out, static_cast<std::size_t>(cols * kStride) * sizeof(float));
  }
}

// One float32 step of the shrink, for the two multiply types that keep x as floats.
template <int Cols, int Vectors>
HWY_INLINE void ShrinkStepF32(const float* HWY_RESTRICT x, const float* HWY_RESTRICT a,
                              V (&acc)[Cols][Vectors]) {
  const D d;
#pragma GCC unroll 16
  for (int v = 0; v < Vectors; ++v) {
    const V xv = hn::LoadU(d, x + v * kLanes);
#pragma GCC unroll 16
    for (int j = 0; j < Cols; ++j) acc[j][v] = hn::MulAdd(xv, hn::Set(d, a[j]), acc[j][v]);
  }
}

// scaling·h as a row panel: h is [rank][kStride] already, so this is the packing of h's transpose.
template <class Multiply>
void LowRankPanel(const float* HWY_RESTRICT h, std::int64_t rank, float scaling, void* panel) {
  constexpr std::int64_t kMost = kMaxLoraRank;
  HWY_ALIGN float scaled[kMost * kStride];
  for (std::int64_t i = 0; i < rank * kStride; ++i) scaled[i] = scaling * h[i];
  Multiply::PackX({scaled, DType::kFloat32, 1, kStride}, kStride, rank, kStride, panel);
}

}  // namespace HWY_NAMESPACE
}  // namespace graft::cpu
HWY_AFTER_NAMESPACE();

#endif  // Highway's toggle
