// The panels of AVX-512 BF16 (vdpbf16ps). One target only; behind use_bf16_dot(), which asks the
// CPU.

#include "backend/cpu/targets.h"
#include "weight/cpu/panels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "weight/cpu/panels_bf16.cc"
#include "hwy/foreach_target.h"
//
#include "hwy/highway.h"
#if HWY_TARGET == HWY_AVX3
// As in product/cpu/kernels_bf16.cc.
#pragma GCC push_options
#pragma GCC target("avx512bf16")
#endif
#include "weight/cpu/convert_pairs-inl.h"

#if HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
#pragma GCC target("avx512bf16")
namespace graft::cpu {
namespace HWY_NAMESPACE {

PanelFormat DotPanels() { return kPairPanels<PairByConvert>; }

}  // namespace HWY_NAMESPACE
}  // namespace graft::cpu
HWY_AFTER_NAMESPACE();
#pragma GCC pop_options
#endif  // HWY_TARGET == HWY_AVX3

#if HWY_ONCE
namespace graft::cpu {

#if HWY_TARGETS & HWY_AVX3
namespace N_AVX3 {
PanelFormat DotPanels();
}
PanelFormat bf16_dot_panels() { return N_AVX3::DotPanels(); }
#else
// Never called: use_bf16_dot() says no where there is no AVX-512.
PanelFormat bf16_dot_panels() { return panel_format(DType::kFloat32); }
#endif

}  // namespace graft::cpu
#endif
