#include <algorithm>
#include <cstddef>

#include "backend/cuda/integers.h"
#include "product/cuda/hopper_outer.h"

namespace graft::cuda {
namespace {

constexpr std::int64_t kRows = 64;  // of a step
constexpr int kMostBlocks = 8;      // of a cluster

// Of a step, in microseconds, when so many blocks run: memory gives 3.5 TB/s to all, and a
// multiprocessor takes 80 GB/s at most.
double step_time(int features, double blocks) {
  const double bytes = static_cast<double>(features * kRows * 2);
  return bytes * std::max(1.0 / 80e3, blocks / 3.5e6);
}

}  // namespace

HopperOuterLaunch plan_hopper_outer_launch(std::int64_t m, std::span<const std::int64_t> cols,
                                           std::int64_t rank, const DeviceFacts& facts) {
  const std::int64_t steps = divide_up(m, kRows);
  HopperOuterLaunch best;
  double best_time = 0;
  for (const int splits : {1, 2, 4, 8}) {
    HopperOuterLaunch plan;
    plan.width = rank <= 64 ? 64 : rank <= 128 ? 128 : 256;
    plan.features = plan.width == 256 ? 128 : 256;
    // Coefficients are twice what a narrow tile fetches besides.
    plan.pair = plan.width == 256 ? 2 : 1;
    plan.splits = splits;
    if (plan.cluster() > kMostBlocks || splits > steps) break;
    for (const std::int64_t each : cols) plan.clusters += plan.clusters_of(each);
    const auto size = static_cast<std::size_t>(plan.cluster());
    const int known = facts.clusters_of[size];
    const std::int64_t at_once =
        std::max(1, known > 0 ? known : facts.multiprocessors / plan.cluster());
    // Rounds of clusters, the last of which may be fewer.
    constexpr double kStart = 3.0, kAdding = 1.0;
    const double ends = kStart + (splits > 1 ? kAdding : 0.0);
    const auto each = static_cast<double>(divide_up(steps, splits));
    const auto time_of = [&](std::int64_t clusters) {
      return each * step_time(plan.features, static_cast<double>(clusters * plan.cluster())) + ends;
    };
    const std::int64_t rest = plan.clusters % at_once;
    const double time = static_cast<double>(plan.clusters / at_once) * time_of(at_once) +
                        (rest > 0 ? time_of(rest) : 0.0);
    if (best.width != 0 && time >= best_time) continue;
    best = plan;
    best_time = time;
  }
  return best;
}

}  // namespace graft::cuda
