// Vector types, and rounding to bfloat16.
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
