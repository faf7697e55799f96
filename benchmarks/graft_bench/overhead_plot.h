#pragma once

#include <string>
#include <vector>

#include "benchmarks/graft_bench/result.h"

namespace graft::bench {

/// An SVG of what an adapter adds to its layer's time: the arithmetic floor, Graft, and the best
/// composed way, for each lora_linear without dropout outside the grid (or in it, if there is no
/// other); forward on the left and forward+backward on the right. Empty if there is none.
std::string overhead_plot_svg(const std::vector<Result>& results, const std::string& title);

}  // namespace graft::bench
