#include <algorithm>
#include <cstdint>
#include <string>

#include "backend/cuda/integers.h"
#include "product/cuda/hopper.h"
#include "product/cuda/hopper_rows.h"

namespace graft::cuda {
namespace {

using namespace hopper_rows;

// Two blocks share a multiprocessor where tiles are small, so that the next kernel's are there when
// this one ends.
constexpr std::size_t kHalfSharedBytes = 113 * 1024, kSharedBytes = 227 * 1024;

// Of a block that makes h; and of one beside it. Behind a launch that has been waited for, half of
// shared memory would let two blocks crowd on one multiprocessor and leave another without, so they
// take more where each could have its own.
constexpr int kMostShrinkBytes = 68 * 1024;
constexpr std::size_t kBesideShrinkBytes = 158 * 1024;

}  // namespace

HopperRowsPlan plan_hopper_rows(std::int64_t m, std::int64_t n, std::int64_t k, std::int64_t rank,
                                int shrink_bytes, const DeviceFacts& facts) {
  HopperRowsPlan plan;
  plan.tile_rows = m <= 64 ? 64 : 128;
  // Wide tiles read x less often; narrow ones are more, which few rows need.
  const bool narrow = m <= 64 || (m <= 128 && divide_up(n, 64) <= facts.multiprocessors);
  plan.tile_columns = narrow ? 64 : 128;
  plan.row_tiles = divide_up(m, plan.tile_rows);
  plan.column_tiles = divide_up(n, plan.tile_columns);
  plan.rank_columns = rank == 0 ? 0 : rank <= 16 ? 16 : rank <= 32 ? 32 : 64;

  // As many blocks as run at once. Pairs of multiprocessors are always beside each other; of larger
  // clusters, which have to find room in one of the device's parts, an H200 takes ten elevenths.
  const std::int64_t tiles = plan.row_tiles * plan.column_tiles, steps = divide_up(k, kStep);
  for (const int splits : {2, 4, 8}) {
    const std::int64_t room = splits == 2 ? facts.multiprocessors : facts.multiprocessors * 10 / 11;
    if (splits > steps || tiles * splits > room) break;
    plan.splits = splits;
  }

  plan.box_rows = static_cast<int>(std::min<std::int64_t>(divide_up(m, 8) * 8, plan.tile_rows));
  plan.slot_bytes = (plan.box_rows + plan.tile_columns) * kRowBytes;
  const int expand_bytes =
      rank == 0 ? 0 : (plan.tile_columns + plan.tile_rows) * (plan.rank_columns + kPadding) * 2;
  const int rest = kBarrierBytes + plan.tile_columns * 4 + expand_bytes;  // a bias among it
  const bool one_each = tiles * plan.splits <= facts.multiprocessors;
  const std::size_t most = plan.tile_rows == 64 ? kHalfSharedBytes : kSharedBytes;
  const int room = static_cast<int>(rank > 0 && one_each ? kBesideShrinkBytes : most);
  plan.slots = std::min((room - rest) / plan.slot_bytes, kMostSlots);
  plan.shared_bytes = static_cast<std::size_t>(plan.slots * plan.slot_bytes + rest);
  if (rank == 0) return plan;

  // A step a warp, if that isn't too many parts; and as many warps as a small block has room for.
  plan.shrink_slot_bytes = kShrinkRows * kRowBytes + plan.rank_columns * kStep * shrink_bytes;
  plan.shrink_warps = kShrinkWarps;
  const auto shrink_bytes_of = [&] {
    return plan.shrink_warps * kShrinkSlots * (plan.shrink_slot_bytes + 8);
  };
  while (shrink_bytes_of() > kMostShrinkBytes) plan.shrink_warps /= 2;
  plan.shrink_shared_bytes = static_cast<std::size_t>(shrink_bytes_of());
  plan.shrink_parts = static_cast<int>(
      std::min<std::int64_t>(divide_up(steps, plan.shrink_warps), kMostShrinkParts));
  return plan;
}

std::size_t hopper_rows_workspace(const Term& term, const DeviceFacts& facts) {
  if (!term.pair.present()) return 0;
  const std::int64_t m = term.x.dim(0);
  const HopperRowsPlan plan =
      plan_hopper_rows(m, term.y.dim(1), term.x.dim(1), term.pair.rank(),
                       static_cast<int>(size_of(term.pair.shrink.dtype())), facts);
  return static_cast<std::size_t>(plan.shrink_parts * m * plan.rank_columns) * sizeof(float);
}

Support hopper_rows_takes(const Term& term, const DeviceFacts& facts) {
  if (Support suits = suits_hopper(term, facts); !suits) return suits;
  const std::int64_t m = term.x.dim(0);
  if (m < 1 || m > kMostHopperRows) return Support::no(std::to_string(m) + " rows");
  if (term.y.dim(1) == 0) return Support::no("no columns");
  if (!term.pair.present()) return {};
  const auto readable = [&](const ConstTensorView& view) {
    return view.dtype() == term.multiply || view.dtype() == DType::kFloat32;
  };
  if (!readable(term.pair.shrink) || !readable(term.pair.expand)) {
    return Support::no("A and B are neither of x's type nor float32");
  }
  if (term.pair.rank() < 1 || term.pair.rank() > kMostHopperRowsRank) return Support::no("rank");
  if (term.pair.input_dropout != nullptr || term.pair.output_dropout != nullptr) {
    return Support::no("dropout");
  }
  return {};
}

}  // namespace graft::cuda
