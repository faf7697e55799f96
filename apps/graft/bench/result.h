#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "apps/graft/bench/arithmetic.h"
#include "apps/graft/bench/timing.h"

namespace graft::app::bench {

/// What one case took, µs a call.
struct Result {
  Case item;
  std::size_t sets = 0;            ///< Sets of inputs gone round in.
  Spread fused;                    ///< Graft's core, called directly.
  Spread eval;                     ///< Graft through MLX's eval.
  std::optional<Spread> base;      ///< The core's linear, for a lora_linear.
  std::optional<Spread> blas;      ///< Products through the BLAS.
  std::optional<Spread> composed;  ///< MLX's own ops, in their best order.
  std::string composed_order;      ///< Which that was.
  Bound bound;

  /// The better of `blas` and `composed`.
  double unfused() const;
  double speed_up() const { return unfused() / fused.median; }
  /// Both through MLX's eval.
  double eval_speed_up() const { return composed->median / eval.median; }
  double gflops() const { return flops(item) / fused.median / 1e3; }
};

/// `spreads` belong to `candidates`, by index.
Result result_of(const Case& item, std::size_t sets, const Machine& machine,
                 const std::vector<Candidate>& candidates, const std::vector<Spread>& spreads);

/// Names and values that a file of results begins with: device, versions, date, limits.
using Facts = std::vector<std::pair<std::string, std::string>>;

/// Lines `# name: value`, a line of column names, and one line a result; times in µs, empty where
/// something was not measured.
std::string csv_of(const Facts& facts, const Machine& machine, const std::vector<Result>& results);

}  // namespace graft::app::bench
