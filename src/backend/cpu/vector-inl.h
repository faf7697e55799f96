// Vectors of float32 over memory of float32 or bfloat16, for kernels that compute in float32.
//
// Included once for each instruction set, inside Highway's foreach_target.

#if defined(GRAFT_BACKEND_CPU_VECTOR_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GRAFT_BACKEND_CPU_VECTOR_INL_H_
#undef GRAFT_BACKEND_CPU_VECTOR_INL_H_
#else
#define GRAFT_BACKEND_CPU_VECTOR_INL_H_
#endif

#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "hwy/contrib/math/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace graft::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using Lanes = hn::ScalableTag<float>;
using Vector = hn::Vec<Lanes>;

HWY_INLINE Vector load(const float* from) { return hn::LoadU(Lanes(), from); }

HWY_INLINE Vector load(const hwy::bfloat16_t* from) {
  const hn::Rebind<std::uint16_t, Lanes> half;
  const hn::Rebind<std::uint32_t, Lanes> whole;
  const auto bits = hn::LoadU(half, reinterpret_cast<const std::uint16_t*>(from));
  return hn::BitCast(Lanes(), hn::ShiftLeft<16>(hn::PromoteTo(whole, bits)));
}

HWY_INLINE void store(Vector value, float* to) { hn::StoreU(value, Lanes(), to); }

// Rounds to nearest, ties to even; Highway 1.0's own conversion truncates.
HWY_INLINE void store(Vector value, hwy::bfloat16_t* to) {
  const hn::Rebind<std::uint16_t, Lanes> half;
  const hn::Rebind<std::int32_t, Lanes> signed_whole;
  const hn::Rebind<std::uint32_t, Lanes> whole;
  const auto bits = hn::BitCast(whole, value);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(whole, 1));
  const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(whole, 0x7FFF)));
  // The carry must not turn a NaN into infinity: keep its upper half and make it quiet.
  const auto quiet = hn::Or(bits, hn::Set(whole, 0x00400000));
  const auto is_nan = hn::RebindMask(whole, hn::IsNaN(value));
  const auto upper = hn::ShiftRight<16>(hn::IfThenElse(is_nan, quiet, rounded));
  hn::StoreU(hn::DemoteTo(half, hn::BitCast(signed_whole, upper)), half,
             reinterpret_cast<std::uint16_t*>(to));
}

// The first `count` lanes only, count below a vector's; the rest reads as zero.
template <class T>
HWY_INLINE Vector load_part(const T* from, std::size_t count) {
  T lanes[HWY_MAX_BYTES / sizeof(float)] = {};
  std::memcpy(lanes, from, count * sizeof(T));
  return load(lanes);
}

template <class T>
HWY_INLINE void store_part(Vector value, T* to, std::size_t count) {
  T lanes[HWY_MAX_BYTES / sizeof(float)];
  store(value, lanes);
  std::memcpy(to, lanes, count * sizeof(T));
}

// e^x, NaN for NaN. Results below the least normal float32 may be zero.
HWY_INLINE Vector exp(Vector x) {
  const Lanes d;
  // Highway's Exp takes up to 104, where it is infinite already, and gives 0 for NaN.
  const Vector value = hn::Exp(d, hn::Min(x, hn::Set(d, 104.0f)));
  return hn::IfThenElse(hn::IsNaN(x), x, value);
}

}  // namespace graft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // GRAFT_BACKEND_CPU_VECTOR_INL_H_
