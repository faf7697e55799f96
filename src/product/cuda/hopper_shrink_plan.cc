#include <algorithm>
#include <cstddef>

#include "backend/cuda/integers.h"
#include "product/cuda/hopper_shrink.h"

namespace graft::cuda {
namespace {

constexpr std::int64_t kRows = 128, kDepth = 64;
constexpr int kMostBlocks = 8;  // of a cluster

// Microseconds until so many row blocks are made in parts of K.
double time_of_parts(const HopperShrinkPlan& plan, std::int64_t clusters, std::int64_t steps,
                     const DeviceFacts& facts) {
  const std::int64_t at_once =
      std::max(1, facts.clusters_of[static_cast<std::size_t>(plan.cluster())]);
  // Of a step: rank 256 is bound by the matrix units if a pair shares S, and by L2 if not. Sums go
  // through shared memory.
  const double step =
      plan.width == 256 ? (plan.pair == 2 ? 0.6 : 0.8) : (plan.pair == 2 ? 0.4 : 0.45);
  const double ends = 2.0 + (plan.splits > 1 ? 1.5 : 0.0);
  return static_cast<double>(divide_up(clusters, at_once)) *
         (static_cast<double>(divide_up(steps, plan.splits)) * step + ends);
}

// All row blocks whole, if there is room for them: one a block, or two. Two of 128 columns that are
// masked take longer than a tile; of 64 that are not, h is made beside the tiles where there is
// room.
bool make_whole(HopperShrinkPlan& plan, std::int64_t row_blocks, HopperShrinkRoom room) {
  for (const int blocks : {1, 2}) {
    if (blocks * plan.width > room.tile_n) break;
    if (blocks == 2 && plan.width != (plan.masked ? 64 : 128)) break;
    for (const int size : {8, 4, 2, 1}) {
      const std::int64_t clusters = divide_up(row_blocks, blocks * size);
      if (clusters * size > room.blocks) continue;
      plan.blocks = blocks;
      plan.pair = size;
      plan.splits = 1;
      plan.clusters = plan.whole_clusters = clusters;
      return true;
    }
  }
  return false;
}

}  // namespace

HopperShrinkPlan plan_hopper_shrink(std::int64_t m, std::int64_t k, std::int64_t rank,
                                    const DeviceFacts& facts, HopperShrinkRoom room, bool masked) {
  const std::int64_t row_blocks = divide_up(m, kRows), steps = divide_up(k, kDepth);
  HopperShrinkPlan best;
  best.width = rank <= 64 ? 64 : rank <= 128 ? 128 : 256;
  best.masked = masked;
  if (make_whole(best, row_blocks, room)) return best;
  double best_time = 0;
  const auto consider = [&](const HopperShrinkPlan& plan) {
    const double time = time_of_parts(plan, plan.clusters, steps, facts);
    if (best_time > 0 && time >= best_time) return;
    best = plan;
    best_time = time;
  };
  for (const int pair : {2, 1}) {
    for (const int splits : {1, 2, 3, 4, 8}) {
      if (splits * pair > kMostBlocks || splits > steps) break;
      HopperShrinkPlan plan = best;
      plan.pair = pair;
      plan.splits = splits;
      plan.whole_clusters = 0;
      plan.clusters = divide_up(row_blocks, pair);
      consider(plan);
    }
  }
  // As much as there is room for whole, and the rest in parts.
  if (best.width <= room.tile_n && room.blocks >= kMostBlocks && steps >= kMostBlocks / 2) {
    HopperShrinkPlan plan = best;
    plan.pair = 2;
    plan.splits = kMostBlocks / 2;
    plan.whole_clusters = room.blocks / kMostBlocks;
    const std::int64_t rest = divide_up(row_blocks - plan.whole_clusters * kMostBlocks, plan.pair);
    plan.clusters = plan.whole_clusters + rest;
    consider(plan);
  }
  return best;
}

}  // namespace graft::cuda
