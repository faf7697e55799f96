// Loads and stores for kernels that compute in float32 over float32 or bfloat16 memory, and e^x.
#if defined(GRAFT_CPU_MEMORY_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GRAFT_CPU_MEMORY_INL_H_
#undef GRAFT_CPU_MEMORY_INL_H_
#else
#define GRAFT_CPU_MEMORY_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace graft::cpu {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using Lanes = hn::ScalableTag<float>;
using Vector = hn::Vec<Lanes>;

constexpr std::int64_t kVectorSize = static_cast<std::int64_t>(HWY_LANES(float));

HWY_INLINE Vector Load(const float* from) { return hn::LoadU(Lanes(), from); }

HWY_INLINE Vector Load(const hwy::bfloat16_t* from) {
  const hn::Rebind<std::uint16_t, Lanes> half;
  const hn::Rebind<std::uint32_t, Lanes> whole;
  const auto bits = hn::LoadU(half, reinterpret_cast<const std::uint16_t*>(from));
  return hn::BitCast(Lanes(), hn::ShiftLeft<16>(hn::PromoteTo(whole, bits)));
}

HWY_INLINE void Store(Vector value, float* to) { hn::StoreU(value, Lanes(), to); }

// Rounds to nearest, ties to even; Highway 1.0's own conversion truncates.
HWY_INLINE void Store(Vector value, hwy::bfloat16_t* to) {
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

// The first `count` lanes only, count at most a vector's; the rest reads as zero.
template <class T>
HWY_INLINE Vector LoadPart(const T* from, std::int64_t count) {
  T lanes[kVectorSize];
  std::memset(lanes, 0, sizeof(lanes));
  std::memcpy(lanes, from, static_cast<std::size_t>(count) * sizeof(T));
  return Load(lanes);
}

template <class T>
HWY_INLINE void StorePart(Vector value, T* to, std::int64_t count) {
  T lanes[kVectorSize];
  Store(value, lanes);
  std::memcpy(to, lanes, static_cast<std::size_t>(count) * sizeof(T));
}

// e^x, infinity above 88.7 and NaN for NaN; a result below float32's least normal number may be 0.
HWY_INLINE Vector Exp(Vector x) {
  const Lanes d;
  // Highway's own takes at most 104, which is infinite already, and gives 0 for NaN.
  const Vector value = hn::Exp(d, hn::Min(x, hn::Set(d, 104.0f)));
  return hn::IfThenElse(hn::IsNaN(x), x, value);
}

}  // namespace HWY_NAMESPACE
}  // namespace graft::cpu
HWY_AFTER_NAMESPACE();

#endif  // Highway's toggle
