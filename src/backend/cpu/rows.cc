#include "backend/cpu/rows.h"

#include "backend/cpu/isa.h"
#include "backend/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/rows.cc"
#include "hwy/foreach_target.h"
//
#include "backend/cpu/memory-inl.h"

HWY_BEFORE_NAMESPACE();
namespace graft::cpu {
namespace HWY_NAMESPACE {

template <class T>
HWY_INLINE void LoadAll(const T* from, std::int64_t count, float* to) {
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) Store(Load(from + i), to + i);
  if (i < count) StorePart(LoadPart(from + i, count - i), to + i, count - i);
}

void LoadRow(const void* from, DType dtype, std::int64_t count, float* to) {
  if (dtype == DType::kFloat32) {
    LoadAll(static_cast<const float*>(from), count, to);
  } else {
    LoadAll(static_cast<const hwy::bfloat16_t*>(from), count, to);
  }
}

template <class T>
HWY_INLINE void StoreAll(const float* from, float factor, std::int64_t count, T* to) {
  const V factors = hn::Set(D(), factor);
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    Store(hn::Mul(Load(from + i), factors), to + i);
  }
  if (i < count) {
    StorePart(hn::Mul(LoadPart(from + i, count - i), factors), to + i, count - i);
  }
}

void StoreRow(const float* from, float factor, std::int64_t count, void* to, DType dtype) {
  if (dtype == DType::kFloat32) {
    StoreAll(from, factor, count, static_cast<float*>(to));
  } else {
    StoreAll(from, factor, count, static_cast<hwy::bfloat16_t*>(to));
  }
}

void AddRow(const float* from, float factor, std::int64_t count, float* to) {
  const V factors = hn::Set(D(), factor);
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    Store(hn::MulAdd(factors, Load(from + i), Load(to + i)), to + i);
  }
  if (i < count) {
    const std::int64_t rest = count - i;
    StorePart(hn::MulAdd(factors, LoadPart(from + i, rest), LoadPart(to + i, rest)), to + i, rest);
  }
}

float Dot(const float* a, const float* b, std::int64_t count) {
  const D d;
  V sum = hn::Zero(d);
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    sum = hn::MulAdd(Load(a + i), Load(b + i), sum);
  }
  if (i < count) sum = hn::MulAdd(LoadPart(a + i, count - i), LoadPart(b + i, count - i), sum);
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

struct Pair {
  V first, second;
};

// (a, b) → (a·cos − b·sin, b·cos + a·sin)
HWY_INLINE Pair Turned(V a, V b, V cos, V sin) {
  return {hn::NegMulAdd(b, sin, hn::Mul(a, cos)), hn::MulAdd(a, sin, hn::Mul(b, cos))};
}

void TurnHalves(float* row, std::int64_t pairs, const float* cos, const float* sin, float sign) {
  const V signs = hn::Set(D(), sign);
  float* const low = row;
  float* const high = row + pairs;
  std::int64_t i = 0;
  for (; i + kLanes <= pairs; i += kLanes) {
    const Pair p =
        Turned(Load(low + i), Load(high + i), Load(cos + i), hn::Mul(signs, Load(sin + i)));
    Store(p.first, low + i);
    Store(p.second, high + i);
  }
  if (i < pairs) {
    const std::int64_t rest = pairs - i;
    const Pair p = Turned(LoadPart(low + i, rest), LoadPart(high + i, rest),
                          LoadPart(cos + i, rest), hn::Mul(signs, LoadPart(sin + i, rest)));
    StorePart(p.first, low + i, rest);
    StorePart(p.second, high + i, rest);
  }
}

void TurnInterleaved(float* row, std::int64_t pairs, const float* cos, const float* sin,
                     float sign) {
  const D d;
  const V signs = hn::Set(d, sign);
  std::int64_t i = 0;
  for (; i + kLanes <= pairs; i += kLanes) {
    V even, odd;
    hn::LoadInterleaved2(d, row + 2 * i, even, odd);
    const Pair p = Turned(even, odd, Load(cos + i), hn::Mul(signs, Load(sin + i)));
    hn::StoreInterleaved2(p.first, p.second, d, row + 2 * i);
  }
  for (; i < pairs; ++i) {
    const float a = row[2 * i], b = row[2 * i + 1], s = sign * sin[i];
    row[2 * i] = a * cos[i] - b * s;
    row[2 * i + 1] = b * cos[i] + a * s;
  }
}

void Turn(float* row, std::int64_t pairs, const float* cos, const float* sin, float sign,
          bool interleaved) {
  interleaved ? TurnInterleaved(row, pairs, cos, sin, sign)
              : TurnHalves(row, pairs, cos, sin, sign);
}

const RowKernels* RowKernelsHere() {
  static constexpr RowKernels kKernels = {&LoadRow, &StoreRow, &AddRow, &Dot, &Turn};
  return &kKernels;
}

}  // namespace HWY_NAMESPACE
}  // namespace graft::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace graft::cpu {

HWY_EXPORT(RowKernelsHere);

const RowKernels& row_kernels() {
  init_isa();
  return *HWY_DYNAMIC_DISPATCH(RowKernelsHere)();
}

}  // namespace graft::cpu
#endif
