#pragma once

#include <string>

#include "apps/graft/commands/bench_flags.h"

namespace graft::app {

/// The flags of `graft bench plan`, with their defaults.
struct BenchPlanFlags : MeasurementFlags {
  std::string device = "gpu";
};

/// Measures the fused ops under MLX on one device beside MLX's own: what `graft bench plan` runs.
/// Throws UserError.
void run_bench_plan(const BenchPlanFlags& flags);

}  // namespace graft::app
