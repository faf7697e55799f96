#pragma once

#include <functional>
#include <vector>

#include "benchmarks/graft_bench/comparison.h"

namespace graft::bench {

/// How the plan's comparisons are made.
struct PlanOptions {
  bool quick = false;         ///< Few and small shapes.
  double rotate_bytes = 0.0;  ///< Of inputs to go round in; see make_sets.
};

/// Makes a comparison with its inputs, which take memory: one at a time.
using MakeComparison = std::function<Comparison()>;

/// y = scaling·(x·A)·B, unfused, fused and MLX's, over batch × sequence × rank.
std::vector<MakeComparison> delta_comparisons(const PlanOptions& options);

/// The other ops that have kernels, against MLX's own: where each of them stands.
std::vector<MakeComparison> kernel_comparisons(const PlanOptions& options);

}  // namespace graft::bench
