// e^x for kernels that compute in float32.
#if defined(GRAFT_CPU_EXP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GRAFT_CPU_EXP_INL_H_
#undef GRAFT_CPU_EXP_INL_H_
#else
#define GRAFT_CPU_EXP_INL_H_
#endif

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

}  // namespace HWY_NAMESPACE
}  // namespace graft::cpu
HWY_AFTER_NAMESPACE();

#endif  // Highway's toggle
