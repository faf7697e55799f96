#include <algorithm>
#include <cstddef>

#include "backend/cuda/integers.h"
#include "product/cuda/hopper_shrink.h"

namespace graft::cuda {
namespace {

constexpr std::int64_t kRows = 128, kDepth = 64;
constexpr int kMostBlocks = 8;  // of a cluster

}  // namespace

HopperShrinkPlan plan_hopper_shrink(std::int64_t m, std::int64_t k, std::int64_t rank,
                                    const DeviceFacts& facts, bool masked) {
  const std::int64_t row_blocks = divide_up(m, kRows), steps = divide_up(k, kDepth);
  HopperShrinkPlan best;
  double best_time = 0;
  for (const int pair : {2, 1}) {
    for (const int splits : {1, 2, 3, 4, 8}) {
      if (splits * pair > kMostBlocks || splits > steps) break;
      HopperShrinkPlan plan;
      plan.width = rank <= 64 ? 64 : rank <= 128 ? 128 : 256;
      plan.pair = pair;
      plan.splits = splits;
      plan.masked = masked;
      plan.clusters = divide_up(row_blocks, pair);
      const std::int64_t at_once =
          std::max(1, facts.clusters_of[static_cast<std::size_t>(plan.cluster())]);
      // Of a step: rank 256 is bound by the matrix units if a pair shares S, and by L2 if not. Sums
      // go through shared memory.
      const double step = plan.width == 256 ? (pair == 2 ? 0.6 : 0.8) : (pair == 2 ? 0.4 : 0.45);
      const double ends = 2.0 + (splits > 1 ? 1.5 : 0.0);
      const double time = static_cast<double>(divide_up(plan.clusters, at_once)) *
                          (static_cast<double>(divide_up(steps, splits)) * step + ends);
      if (best.width != 0 && time >= best_time) continue;
      best = plan;
      best_time = time;
    }
  }
  return best;
}

}  // namespace graft::cuda
