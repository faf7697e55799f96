#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "benchmarks/graft_bench/arithmetic.h"
#include "benchmarks/graft_bench/facts.h"
#include "benchmarks/graft_bench/timing.h"

namespace graft::bench {

/// What one case took, µs a call.
struct Result {
  Case item;
  std::size_t sets = 0;            ///< Sets of inputs gone round in.
  Timing fused;                    ///< Graft's core, called directly.
  Timing eval;                     ///< Graft through MLX's eval.
  std::optional<Timing> base;      ///< The core's linear, for a lora_linear.
  std::optional<Timing> blas;      ///< Products through the BLAS.
  std::optional<Timing> composed;  ///< MLX's own ops, in their best order.
  std::string composed_order;      ///< Which that was.

  /// The better of `blas` and `composed`.
  double unfused() const;
  double speed_up() const { return unfused() / fused.median; }
  /// Both through MLX's eval.
  double eval_speed_up() const { return composed->median / eval.median; }
  double gflops() const { return flops(item) / fused.median / 1e3; }
  /// On a machine whose limits are known from the whole run.
  Bound bound(const Machine& machine) const {
    return bound_of(item, machine, static_cast<double>(sets) * bytes(item));
  }
};

/// `timings` belong to `candidates`, by index.
Result result_of(const Case& item, std::size_t sets, const std::vector<Candidate>& candidates,
                 const std::vector<Timing>& timings);

/// Labels of those whose fused time beats their bound, which so is none; one a line.
std::string beaten_bounds(const Machine& machine, const std::vector<Result>& results);

/// A file of results; times in µs, empty where something was not measured.
std::string csv_of(const Facts& facts, const Machine& machine, const std::vector<Result>& results);

}  // namespace graft::bench
