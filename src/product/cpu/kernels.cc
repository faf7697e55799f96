#include "product/cpu/kernels.h"

#include "backend/cpu/isa.h"
#include "backend/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "product/cpu/kernels.cc"
#include "hwy/foreach_target.h"
//
#include "product/cpu/multiply-inl.h"

HWY_BEFORE_NAMESPACE();
namespace graft::cpu {
namespace HWY_NAMESPACE {

const Kernels* F32Kernels() { return MakeKernels<MultiplyF32>(); }
const Kernels* WidenedKernels() { return MakeKernels<MultiplyWidened>(); }

}  // namespace HWY_NAMESPACE
}  // namespace graft::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace graft::cpu {

HWY_EXPORT(F32Kernels);
HWY_EXPORT(WidenedKernels);

const Kernels& kernels_for(DType dtype) {
  init_isa();
  if (dtype == DType::kFloat32) return *HWY_DYNAMIC_DISPATCH(F32Kernels)();
  if (use_bf16_dot()) return bf16_dot_kernels();
  return *HWY_DYNAMIC_DISPATCH(WidenedKernels)();
}

}  // namespace graft::cpu
#endif
