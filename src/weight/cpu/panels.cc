#include "weight/cpu/panels.h"

#include <algorithm>

#include "backend/cpu/isa.h"
#include "backend/cpu/targets.h"
#include "backend/cpu/threads.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "weight/cpu/panels.cc"
#include "hwy/foreach_target.h"
//
#include "weight/cpu/pack-inl.h"

HWY_BEFORE_NAMESPACE();
namespace graft::cpu {
namespace HWY_NAMESPACE {

PanelFormat FloatPanelsHere() { return kFloatPanels; }
PanelFormat PairPanelsHere() { return kPairPanels<PairByRounding>; }

}  // namespace HWY_NAMESPACE
}  // namespace graft::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace graft::cpu {

HWY_EXPORT(FloatPanelsHere);
HWY_EXPORT(PairPanelsHere);

PanelFormat panel_format(DType dtype) {
  init_isa();
  if (dtype == DType::kFloat32) return HWY_DYNAMIC_DISPATCH(FloatPanelsHere)();
  if (use_bf16_dot()) return bf16_dot_panels();
  return HWY_DYNAMIC_DISPATCH(PairPanelsHere)();
}

std::int64_t packed_panels_size(const PanelFormat& format, std::int64_t n, std::int64_t k) {
  return ceil_div(n, format.width) * format.column_panel_size(k);
}

void pack_panel(const PanelFormat& format, const Source& w, std::int64_t n, std::int64_t k,
                std::int64_t panel, std::uint32_t* panels) {
  const std::int64_t col = panel * format.width;
  format.pack_columns(w.at(col, 0), static_cast<int>(std::min<std::int64_t>(format.width, n - col)),
                      k, panels + panel * format.column_panel_size(k));
}

void pack_panels(const Context& context, const PanelFormat& format, const Source& w, std::int64_t n,
                 std::int64_t k, std::uint32_t* panels) {
  parallel_for(context, ceil_div(n, format.width),
               [&](std::int64_t panel) { pack_panel(format, w, n, k, panel, panels); });
}

}  // namespace graft::cpu
#endif
