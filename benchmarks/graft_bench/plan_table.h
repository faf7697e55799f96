#pragma once

#include <string>
#include <vector>

#include "benchmarks/graft_bench/comparison.h"
#include "benchmarks/graft_bench/csv.h"

namespace graft::bench {

/// @{
/// The plan's table, lines of at most 80 columns: times in µs, a dash where there is no figure.
std::string delta_head();
std::string delta_line(const Compared& result);
/// How far speed-up and share of MLX reach over all lines, beside what the plan asks.
std::string delta_summary(const std::vector<Compared>& results);
/// @}

/// @{
/// The same for the other ops.
std::string kernel_head();
std::string kernel_line(const Compared& result);
/// @}

/// What is objected to calling results fused, a line for each objection and op; empty if nothing.
std::string objections_in(const std::vector<Compared>& results);

/// A result's line of the file.
Fields fields_of(const Compared& result);

}  // namespace graft::bench
