#include "product/cpu/packed_panels.h"

#include <algorithm>

#include "backend/cpu/threads.h"

namespace graft::cpu {

std::int64_t packed_panels_size(const Kernels& kernels, std::int64_t n, std::int64_t k) {
  return ceil_div(n, kernels.width) * kernels.column_panel_size(k);
}

void pack_panel(const Kernels& kernels, const Source& w, std::int64_t n, std::int64_t k,
                std::int64_t panel, std::uint32_t* panels) {
  const std::int64_t col = panel * kernels.width;
  kernels.pack_columns(w.at(col, 0),
                       static_cast<int>(std::min<std::int64_t>(kernels.width, n - col)), k,
                       panels + panel * kernels.column_panel_size(k));
}

void pack_panels(const Context& context, const Kernels& kernels, const Source& w, std::int64_t n,
                 std::int64_t k, std::uint32_t* panels) {
  parallel_for(context, ceil_div(n, kernels.width),
               [&](std::int64_t panel) { pack_panel(kernels, w, n, k, panel, panels); });
}

}  // namespace graft::cpu
