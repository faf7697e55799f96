// Dropout masks (graft/lora.h): kLanes Philox counters at a time, four mask values each.
#if defined(GRAFT_CPU_DROPOUT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GRAFT_CPU_DROPOUT_INL_H_
#undef GRAFT_CPU_DROPOUT_INL_H_
#else
#define GRAFT_CPU_DROPOUT_INL_H_
#endif

#include <cstdint>

#include "backend/cpu/memory-inl.h"
#include "backend/cpu/vectors-inl.h"
#include "backend/philox.h"
#include "graft/lora.h"
#include "product/cpu/kernels.h"
#include "product/cpu/pack-inl.h"

HWY_BEFORE_NAMESPACE();
namespace graft::cpu {
namespace HWY_NAMESPACE {

inline VU MulHigh32(VU a, VU b, VU* low) {
  const DU du;
#if HWY_TARGET == HWY_SCALAR
  const std::uint64_t p = static_cast<std::uint64_t>(hn::GetLane(a)) * hn::GetLane(b);
  *low = hn::Set(du, static_cast<std::uint32_t>(p));
  return hn::Set(du, static_cast<std::uint32_t>(p >> 32));
#else
  const VU even = hn::BitCast(du, hn::MulEven(a, b));
  const VU odd = hn::BitCast(du, hn::MulEven(hn::DupOdd(a), b));
  *low = hn::OddEven(hn::DupEven(odd), even);
  return hn::OddEven(odd, hn::DupOdd(even));
#endif
}

inline void DropoutMask(const Dropout& dropout, std::uint64_t first, std::int64_t count,
                        float* HWY_RESTRICT mask) {
  const float keep = 1.0f / (1.0f - dropout.p);
  const std::uint32_t threshold = dropout_threshold(dropout.p);
  std::int64_t i = 0;
  for (; i < count && (first + static_cast<std::uint64_t>(i)) % 4 != 0; ++i) {
    mask[i] = dropout_keeps(first + static_cast<std::uint64_t>(i), dropout.p, dropout.seed,
                            dropout.offset)
                  ? keep
                  : 0.0f;
  }
#if HWY_TARGET != HWY_SCALAR
  const D d;
  const DU du;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
    const std::uint64_t counter = dropout.offset + (first + static_cast<std::uint64_t>(i)) / 4;
    const std::uint32_t low = static_cast<std::uint32_t>(counter);
    VU c0 = hn::Add(hn::Set(du, low), hn::Iota(du, 0));
    // A lane whose low word wrapped carries into the high one.
    const VU high = hn::Set(du, static_cast<std::uint32_t>(counter >> 32));
    VU c1 = hn::IfThenElse(hn::Lt(c0, hn::Set(du, low)), hn::Add(high, hn::Set(du, 1)), high);
    VU c2 = hn::Zero(du), c3 = hn::Zero(du);
    std::uint32_t k0 = static_cast<std::uint32_t>(dropout.seed);
    std::uint32_t k1 = static_cast<std::uint32_t>(dropout.seed >> 32);
    for (int round = 0; round < kPhiloxRounds; ++round) {
      VU low0, low1;
      const VU high0 = MulHigh32(c0, hn::Set(du, kPhiloxM0), &low0);
      const VU high1 = MulHigh32(c2, hn::Set(du, kPhiloxM1), &low1);
      c0 = hn::Xor(hn::Xor(high1, c1), hn::Set(du, k0));
      c2 = hn::Xor(hn::Xor(high0, c3), hn::Set(du, k1));
      c1 = low1;
      c3 = low0;
      k0 += kPhiloxW0;
      k1 += kPhiloxW1;
    }
    const VU t = hn::Set(du, threshold);
    const V kept = hn::Set(d, keep);
    hn::StoreInterleaved4(hn::IfThenZeroElse(hn::RebindMask(d, hn::Lt(c0, t)), kept),
                          hn::IfThenZeroElse(hn::RebindMask(d, hn::Lt(c1, t)), kept),
                          hn::IfThenZeroElse(hn::RebindMask(d, hn::Lt(c2, t)), kept),
                          hn::IfThenZeroElse(hn::RebindMask(d, hn::Lt(c3, t)), kept), d, mask + i);
  }
#endif
  for (; i < count; i += 4) {
    const auto words =
        philox(dropout.offset + (first + static_cast<std::uint64_t>(i)) / 4, dropout.seed);
    for (std::int64_t t = 0; t < 4 && i + t < count; ++t) {
      mask[i + t] = words[static_cast<std::size_t>(t)] >= threshold ? keep : 0.0f;
    }
  }
}

// The whole vectors of out = mask ∘ row; returns the columns done.
template <class T>
HWY_INLINE std::int64_t DropVectors(const T* HWY_RESTRICT row, const float* mask, std::int64_t cols,
                                    float* out) {
  const D d;
  std::int64_t j = 0;
  for (; j + kLanes <= cols; j += kLanes) {
    const V mj = hn::LoadU(d, mask + j);
    const V product = hn::Mul(mj, Load(row + j));
    hn::StoreU(hn::IfThenZeroElse(hn::Eq(mj, hn::Zero(d)), product), d, out + j);
  }
  return j;
}

inline void DropRows(const Source& x, std::int64_t rows, std::int64_t cols, const float* mask,
                     std::int64_t mask_stride, float* out) {
  for (std::int64_t i = 0; i < rows; ++i, out += cols) {
    const Source row = x.at(i, 0);
    const float* m = mask != nullptr ? mask + i * mask_stride : nullptr;
    std::int64_t j = 0;
    if (row.col_stride == 1 && m != nullptr) {
      j = row.dtype == DType::kFloat32
              ? DropVectors(static_cast<const float*>(row.data), m, cols, out)
              : DropVectors(static_cast<const hwy::bfloat16_t*>(row.data), m, cols, out);
    }
    for (; j < cols; ++j) {
      const float mj = m != nullptr ? m[j] : 1.0f;
      out[j] = mj == 0.0f ? 0.0f : mj * LoadOne(row, 0, j);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace graft::cpu
HWY_AFTER_NAMESPACE();

#endif  // Highway's toggle
