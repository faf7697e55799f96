// e^x for kernels that compute in float32.
#if defined(GRAFT_CPU_EXP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GRAFT_CPU_EXP_INL_H_
#undef GRAFT_CPU_EXP_INL_H_
#else
#define GRAFT_CPU_EXP_INL_H_
#endif

#include <algorithm>

#include "backend/cpu/vectors-inl.h"
#include "hwy/contrib/math/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace graft::cpu {
namespace HWY_NAMESPACE {

// e^x, infinity above 88.7 and NaN for NaN; a result below float32's least normal number may be 0.
HWY_INLINE V Exp(V x) {
  const D d;
  // Highway's own takes at most 104, which is infinite already, and gives 0 for NaN.
  const V value = hn::Exp(d, hn::Min(x, hn::Set(d, 104.0f)));
  return hn::IfThenElse(hn::IsNaN(x), x, value);
}

// e^(scale·(x − largest)) for x up to `largest`: 0 for x = −∞ and where the power is below
// 2^−126.5; NaN if either is NaN, or both are the same infinity. Within 1.3 units of the last place
// of what it is for the scale and the difference as float32 rounds them.
class ExpBelow {
 public:
  // `scale` is finite and positive; above 2.3e38 it counts as that.
  explicit HWY_INLINE ExpBelow(float scale) {
    // A tiny scale would make differences that matter overflow, were they not made small before.
    const double factor = scale < 1e-30f ? 0x1p-64 : 1.0;
    constexpr double kLog2E = 1.4426950408889634, kMost = 3.4e38;
    const double powers = std::min(kMost, kLog2E * double{scale} / factor);
    factor_ = hn::Set(D(), static_cast<float>(factor));
    to_powers_ = hn::Set(D(), static_cast<float>(powers));
    least_ = hn::Set(D(), static_cast<float>(-127.0 / powers));
  }

  // What `operator()` takes for `largest`.
  HWY_INLINE V origin(float largest) const { return hn::Mul(hn::Set(D(), largest), factor_); }

  HWY_INLINE V operator()(V x, V origin) const {
    const D d;
    // Adding 1.5·2²³ rounds to whole numbers, and leaves them, with the bias of an exponent, in the
    // low bits; −127 there is the exponent of zero.
    const V magic = hn::Set(d, 12582912.0f + 127.0f);
    const V t = AtLeast(hn::MulSub(x, factor_, origin), least_);
    const V shifted = hn::MulAdd(t, to_powers_, magic);
    const V rest = hn::MulSub(t, to_powers_, hn::Sub(shifted, magic));  // within ±½
    const V whole = hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(DU(), shifted)));
    // 2^rest: the polynomial of least relative error on ±½, 2e-9.
    V power = hn::Set(d, 0.00015345812f);
    power = hn::MulAdd(power, rest, hn::Set(d, 0.0013399931f));
    power = hn::MulAdd(power, rest, hn::Set(d, 0.009618489f));
    power = hn::MulAdd(power, rest, hn::Set(d, 0.055503286f));
    power = hn::MulAdd(power, rest, hn::Set(d, 0.24022646f));
    power = hn::MulAdd(power, rest, hn::Set(d, 0.6931472f));
    power = hn::MulAdd(power, rest, hn::Set(d, 1.0f));
    return hn::Mul(power, whole);
  }

 private:
  // The larger one, NaN for NaN: of Highway's Max, x86 gives the second then, others do otherwise.
  static HWY_INLINE V AtLeast(V t, V least) {
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
    return hn::Max(least, t);
#else
    return hn::IfThenElse(hn::Lt(t, least), least, t);
#endif
  }

  V factor_, to_powers_, least_;
};

}  // namespace HWY_NAMESPACE
}  // namespace graft::cpu
HWY_AFTER_NAMESPACE();

#endif  // Highway's toggle
