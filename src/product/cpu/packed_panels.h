#pragma once

#include <cstdint>

#include "graft/context.h"
#include "product/cpu/kernels.h"

namespace graft::cpu {

/// ⌈a / b⌉ of counts: how many panels, steps or chunks of b hold a.
inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// Packs all columns of a product into column panels, [⌈n / width⌉][steps][width], on the context's
/// threads. Row j of `w` (n × k) is column j of the product.
void pack_panels(const Context& context, const Kernels& kernels, const Source& w, std::int64_t n,
                 std::int64_t k, std::uint32_t* panels);

/// Panel `panel` of those alone.
void pack_panel(const Kernels& kernels, const Source& w, std::int64_t n, std::int64_t k,
                std::int64_t panel, std::uint32_t* panels);

/// 32-bit elements that pack_panels writes.
std::int64_t packed_panels_size(const Kernels& kernels, std::int64_t n, std::int64_t k);

}  // namespace graft::cpu
