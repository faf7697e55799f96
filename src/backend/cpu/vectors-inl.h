// Vector types, the shape of the register tile, and rounding to bfloat16.
#if defined(GRAFT_CPU_VECTORS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GRAFT_CPU_VECTORS_INL_H_
#undef GRAFT_CPU_VECTORS_INL_H_
#else
#define GRAFT_CPU_VECTORS_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace graft::cpu {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using D = hn::ScalableTag<float>;
using DU = hn::RebindToUnsigned<D>;
using V = hn::Vec<D>;
using VU = hn::Vec<DU>;

// Lanes are known at compile time on every target that is compiled (targets.h).
constexpr int kLanes = static_cast<int>(HWY_LANES(float));

// The register tile is kRows × 2 vectors. With 32 registers 14 × 2 leaves room for two vectors of W
// and one broadcast; 6 × 2 does with 16. Other shapes of 28 accumulators (9 × 3, 6 × 4) are as fast
// but make h dearer, and 28 × 1 is 15–30 % slower.
constexpr int kRows = (HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_NEON) ? 14
                      : HWY_TARGET == HWY_AVX2                           ? 6
                                                                         : 4;
constexpr int kStride = (kRows + kLanes - 1) / kLanes * kLanes;
constexpr int kWidth = 2 * kLanes;

// Columns of A that one pass of the shrink takes: enough accumulators to hide the latency of an
// FMA, with kStride / kLanes vectors of rows each. Where a vector has more lanes than that, it
// takes a vector's worth at once if so many are left, lanes along columns: no lanes go to rows that
// a panel lacks.
constexpr int kShrink = kStride / kLanes <= 1 ? 8 : 4;
constexpr int kWideShrink = kLanes > kShrink ? kLanes : kShrink;

// Row panels that share a pass over kShrink columns, where registers hold the sums of two: a
// broadcast of A then serves both.
constexpr int kShrinkPanels = kStride == kLanes && HWY_TARGET == HWY_AVX3 ? 2 : 1;

// How many columns the pass takes that has `left` before it.
HWY_INLINE int ShrinkGroup(std::int64_t left) { return left > kShrink ? kWideShrink : kShrink; }

// float32 rounded to bfloat16 in the upper half of each lane (ties to even; NaN stays NaN); the
// lower half holds nothing.
template <class Floats>
HWY_INLINE hn::Vec<hn::RebindToUnsigned<Floats>> RoundUpperHalf(Floats, hn::Vec<Floats> value) {
  const hn::RebindToUnsigned<Floats> du;
  const auto bits = hn::BitCast(du, value);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
  const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7fff)));
  const auto quiet = hn::Or(bits, hn::Set(du, 0x400000));
  return hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(value)), quiet, rounded);
}

// The same with zeros in the lower half.
template <class Floats>
HWY_INLINE hn::Vec<hn::RebindToUnsigned<Floats>> RoundToUpperHalf(Floats d, hn::Vec<Floats> value) {
  return hn::And(RoundUpperHalf(d, value), hn::Set(hn::RebindToUnsigned<Floats>(), 0xffff0000u));
}

HWY_INLINE VU RoundToUpperHalf(V value) { return RoundToUpperHalf(D(), value); }

}  // namespace HWY_NAMESPACE
}  // namespace graft::cpu
HWY_AFTER_NAMESPACE();

#endif  // Highway's toggle
