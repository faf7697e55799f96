// Loads and stores for kernels that compute in float32 over float32 or bfloat16 memory.
#if defined(GRAFT_CPU_MEMORY_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GRAFT_CPU_MEMORY_INL_H_
#undef GRAFT_CPU_MEMORY_INL_H_
#else
#define GRAFT_CPU_MEMORY_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "backend/cpu/vectors-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace graft::cpu {
namespace HWY_NAMESPACE {

HWY_INLINE V Load(const float* from) { return hn::LoadU(D(), from); }

HWY_INLINE V Load(const hwy::bfloat16_t* from) {
  const hn::Rebind<std::uint16_t, D> half;
  const auto bits = hn::LoadU(half, reinterpret_cast<const std::uint16_t*>(from));
  return hn::BitCast(D(), hn::ShiftLeft<16>(hn::PromoteTo(DU(), bits)));
}

HWY_INLINE void Store(V value, float* to) { hn::StoreU(value, D(), to); }

// Rounds to nearest, ties to even; Highway 1.0's own conversion truncates.
HWY_INLINE void Store(V value, hwy::bfloat16_t* to) {
  const hn::Rebind<std::uint16_t, D> half;
  const hn::Rebind<std::int32_t, D> whole;
  const VU upper = hn::ShiftRight<16>(RoundUpperHalf(D(), value));
  hn::StoreU(hn::DemoteTo(half, hn::BitCast(whole, upper)), half,
             reinterpret_cast<std::uint16_t*>(to));
}

// The first `count` lanes only, count at most a vector's; the rest reads as zero.
template <class T>
HWY_INLINE V LoadPart(const T* from, std::int64_t count) {
  T lanes[kLanes];
  std::memset(lanes, 0, sizeof(lanes));
  std::memcpy(lanes, from, static_cast<std::size_t>(count) * sizeof(T));
  return Load(lanes);
}

template <class T>
HWY_INLINE void StorePart(V value, T* to, std::int64_t count) {
  T lanes[kLanes];
  Store(value, lanes);
  std::memcpy(to, lanes, static_cast<std::size_t>(count) * sizeof(T));
}

}  // namespace HWY_NAMESPACE
}  // namespace graft::cpu
HWY_AFTER_NAMESPACE();

#endif  // Highway's toggle
