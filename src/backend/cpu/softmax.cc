#include "backend/cpu/softmax.h"

#include <limits>

#include "backend/cpu/isa.h"
#include "backend/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/softmax.cc"
#include "hwy/foreach_target.h"
//
#include "backend/cpu/exp-inl.h"
#include "backend/cpu/memory-inl.h"

HWY_BEFORE_NAMESPACE();
namespace graft::cpu {
namespace HWY_NAMESPACE {

constexpr float kLowest = -std::numeric_limits<float>::infinity();

HWY_INLINE V ScaledExp(V z, V scale, V shift) { return Exp(hn::MulSub(z, scale, shift)); }

// Calls `body(i, keep)` for each vector of a row. The last may be partial: `keep(value, other)`
// puts `other` into the lanes past the row.
template <class Body>
HWY_INLINE void ForEachVector(std::int64_t count, const Body& body) {
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    body(i, [](V value, float) HWY_ATTR { return value; });
  }
  if (i < count) {
    const auto mask = hn::FirstN(D(), static_cast<std::size_t>(count - i));
    body(i, [&](V value, float other)
                HWY_ATTR { return hn::IfThenElse(mask, value, hn::Set(D(), other)); });
  }
}

float Max(const float* z, std::int64_t count) {
  const D d;
  V largest = hn::Set(d, kLowest);
  ForEachVector(count, [&](std::int64_t i, const auto& keep)
                           HWY_ATTR { largest = hn::Max(largest, keep(Load(z + i), kLowest)); });
  return hn::GetLane(hn::MaxOfLanes(d, largest));
}

float ExpSum(const float* z, std::int64_t count, float scale, float shift) {
  const D d;
  const V scales = hn::Set(d, scale), shifts = hn::Set(d, shift);
  V sum = hn::Zero(d);
  ForEachVector(count, [&](std::int64_t i, const auto& keep) HWY_ATTR {
    sum = hn::Add(sum, keep(ScaledExp(Load(z + i), scales, shifts), 0.0f));
  });
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

float ExpInPlace(float* z, std::int64_t count, float scale, float shift) {
  const D d;
  const V scales = hn::Set(d, scale), shifts = hn::Set(d, shift);
  V sum = hn::Zero(d);
  ForEachVector(count, [&](std::int64_t i, const auto& keep) HWY_ATTR {
    const V e = keep(ScaledExp(Load(z + i), scales, shifts), 0.0f);
    Store(e, z + i);
    sum = hn::Add(sum, e);
  });
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

void Backward(float* z, float* dp, std::int64_t count, float scale, float shift, float delta) {
  const D d;
  const V scales = hn::Set(d, scale), shifts = hn::Set(d, shift), deltas = hn::Set(d, delta);
  ForEachVector(count, [&](std::int64_t i, const auto& keep) HWY_ATTR {
    const V p = keep(ScaledExp(Load(z + i), scales, shifts), 0.0f);
    Store(p, z + i);
    const V ds = hn::Mul(hn::Mul(scales, p), hn::Sub(Load(dp + i), deltas));
    Store(keep(ds, 0.0f), dp + i);
  });
}

const SoftmaxKernels* SoftmaxKernelsHere() {
  static constexpr SoftmaxKernels kKernels = {&Max, &ExpSum, &ExpInPlace, &Backward};
  return &kKernels;
}

}  // namespace HWY_NAMESPACE
}  // namespace graft::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace graft::cpu {

HWY_EXPORT(SoftmaxKernelsHere);

const SoftmaxKernels& softmax_kernels() {
  init_isa();
  return *HWY_DYNAMIC_DISPATCH(SoftmaxKernelsHere)();
}

}  // namespace graft::cpu
#endif
