#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "benchmarks/graft_bench/graphs.h"
#include "benchmarks/graft_bench/timing.h"

namespace graft::bench {

/// What a comparison is of: x is (batch, sequence, in_features).
struct Subject {
  std::string table;  ///< Which it belongs to: "plan", "kernels".
  std::string op;
  Pass pass = Pass::kForward;
  std::int64_t batch = 1;
  std::int64_t sequence = 1;
  std::int64_t in = 0;
  std::int64_t out = 0;
  std::int64_t rank = 0;  ///< 0 without an adapter.
};

/// One call on the set of inputs with this index: its outputs, not yet evaluated.
using Call = std::function<Arrays(std::size_t)>;

/// Graft's op and MLX's own ops for the same outputs, all through MLX's eval.
struct Comparison {
  Subject subject;
  std::size_t sets = 1;
  Call fused;
  std::vector<std::pair<std::string, Call>> mlx;  ///< Ways to compose it; at least one.
  std::function<void(std::size_t)> unfused;       ///< Evaluates every op on its own; may be empty.
};

/// What it took, µs a call.
struct Compared {
  struct Measured : Timing {
    std::string way;
  };

  Subject subject;
  std::size_t sets = 1;
  std::size_t together = 1;  ///< Calls in one eval, for the last two; they are a call's share.
  std::string objection;     ///< Why nothing here may be called fused; empty: it may.
  std::optional<Measured> unfused;
  std::optional<Measured> fused;  ///< Absent if there is an objection.
  std::optional<Measured> mlx;    ///< The fastest way.
  std::optional<Measured> fused_together;
  std::optional<Measured> mlx_together;

  std::optional<double> speed_up() const { return ratio(unfused, fused); }
  std::optional<double> of_mlx() const { return ratio(fused, mlx); }
  std::optional<double> of_mlx_together() const { return ratio(fused_together, mlx_together); }

 private:
  static std::optional<double> ratio(const std::optional<Measured>& over,
                                     const std::optional<Measured>& under) {
    if (!over || !under) return std::nullopt;
    return over->median / under->median;
  }
};

/// Measures all ways in turns. `mlx_uses_blas`: MLX runs its products on the CPU.
Compared compare(const Comparison& comparison, Stopwatch& stopwatch, bool mlx_uses_blas);

}  // namespace graft::bench
