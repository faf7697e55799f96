#include <algorithm>
#include <cstddef>

#include "backend/cuda/integers.h"
#include "product/cuda/hopper_outer.h"

namespace graft::cuda {
namespace {

constexpr std::int64_t kRows = 64;  // of a step

// Of a step, in microseconds, when all multiprocessors read: memory gives them 3.3 TB/s of the
// matrix together, and L2 coefficients, which are twice as much at rank 256.
double step_time(int width) { return width == 64 ? 0.52 : width == 128 ? 0.6 : 0.8; }

}  // namespace

HopperOuterLaunch plan_hopper_outer_launch(std::int64_t m, std::span<const std::int64_t> cols,
                                           std::int64_t rank, const DeviceFacts& facts) {
  const std::int64_t steps = divide_up(m, kRows);
  HopperOuterLaunch plan;
  plan.width = rank <= 64 ? 64 : rank <= 128 ? 128 : 256;
  for (const std::int64_t each : cols) plan.clusters += HopperOuterLaunch::tiles_of(each);
  double best = 0;
  for (const int splits : {1, 2, 3, 4, 8}) {
    if (splits > steps) break;
    const int known = facts.clusters_of[static_cast<std::size_t>(splits)];
    const std::int64_t at_once = std::max(1, known > 0 ? known : facts.multiprocessors / splits);
    constexpr double kEnds = 4.0, kAdding = 1.0;
    const double time = static_cast<double>(divide_up(plan.clusters, at_once)) *
                        (static_cast<double>(divide_up(steps, splits)) * step_time(plan.width) +
                         kEnds + (splits > 1 ? kAdding : 0.0));
    if (splits > 1 && time >= best) continue;
    plan.splits = splits;
    best = time;
  }
  return plan;
}

}  // namespace graft::cuda
