#include "backend/cpu/softmax.h"

#include <limits>

#include "backend/cpu/isa.h"
#include "backend/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/softmax.cc"
#include "hwy/foreach_target.h"
//
#include "backend/cpu/memory-inl.h"

HWY_BEFORE_NAMESPACE();
namespace graft::cpu {
namespace HWY_NAMESPACE {

constexpr float kLowest = -std::numeric_limits<float>::infinity();

// The first `count` lanes of `value`, `other` in the rest.
HWY_INLINE Vector KeepLanes(Vector value, std::int64_t count, float other) {
  const Lanes d;
  return hn::IfThenElse(hn::FirstN(d, static_cast<std::size_t>(count)), value, hn::Set(d, other));
}

HWY_INLINE Vector ScaledExp(Vector z, Vector scale, Vector shift) {
  return Exp(hn::MulSub(z, scale, shift));
}

float Max(const float* z, std::int64_t count) {
  const Lanes d;
  Vector largest = hn::Set(d, kLowest);
  std::int64_t i = 0;
  for (; i + kVectorSize <= count; i += kVectorSize) largest = hn::Max(largest, Load(z + i));
  if (i < count) {
    largest = hn::Max(largest, KeepLanes(LoadPart(z + i, count - i), count - i, kLowest));
  }
  return hn::GetLane(hn::MaxOfLanes(d, largest));
}

float ExpSum(const float* z, std::int64_t count, float scale, float shift) {
  const Lanes d;
  const Vector scales = hn::Set(d, scale), shifts = hn::Set(d, shift);
  Vector sum = hn::Zero(d);
  std::int64_t i = 0;
  for (; i + kVectorSize <= count; i += kVectorSize) {
    sum = hn::Add(sum, ScaledExp(Load(z + i), scales, shifts));
  }
  if (i < count) {
    const Vector e = ScaledExp(LoadPart(z + i, count - i), scales, shifts);
    sum = hn::Add(sum, KeepLanes(e, count - i, 0.0f));
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

float ExpInPlace(float* z, std::int64_t count, float scale, float shift) {
  const Lanes d;
  const Vector scales = hn::Set(d, scale), shifts = hn::Set(d, shift);
  Vector sum = hn::Zero(d);
  std::int64_t i = 0;
  for (; i + kVectorSize <= count; i += kVectorSize) {
    const Vector e = ScaledExp(Load(z + i), scales, shifts);
    Store(e, z + i);
    sum = hn::Add(sum, e);
  }
  if (i < count) {
    const Vector e = ScaledExp(LoadPart(z + i, count - i), scales, shifts);
    StorePart(e, z + i, count - i);
    sum = hn::Add(sum, KeepLanes(e, count - i, 0.0f));
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

void Backward(float* z, float* dp, std::int64_t count, float scale, float shift, float delta) {
  const Lanes d;
  const Vector scales = hn::Set(d, scale), shifts = hn::Set(d, shift), deltas = hn::Set(d, delta);
  std::int64_t i = 0;
  for (; i + kVectorSize <= count; i += kVectorSize) {
    const Vector p = ScaledExp(Load(z + i), scales, shifts);
    Store(p, z + i);
    Store(hn::Mul(hn::Mul(scales, p), hn::Sub(Load(dp + i), deltas)), dp + i);
  }
  if (i < count) {
    const std::int64_t rest = count - i;
    const Vector p = ScaledExp(LoadPart(z + i, rest), scales, shifts);
    StorePart(p, z + i, rest);
    StorePart(hn::Mul(hn::Mul(scales, p), hn::Sub(LoadPart(dp + i, rest), deltas)), dp + i, rest);
  }
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
