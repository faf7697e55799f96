#pragma once

#include <string>

#include "benchmarks/graft_bench/measurement_flags.h"

namespace graft::bench {

/// The flags of `graft-bench plan`, with their defaults.
struct PlanFlags : MeasurementFlags {
  std::string device = "gpu";
};

/// Measures the fused ops under MLX on one device beside MLX's own: what `graft-bench plan` runs.
/// Throws llm::UserError.
void run_plan(const PlanFlags& flags);

}  // namespace graft::bench
