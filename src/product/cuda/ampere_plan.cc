#include <algorithm>
#include <string>

#include "backend/cuda/integers.h"
#include "product/cuda/ampere.h"

namespace graft::cuda {
namespace {

constexpr std::int64_t kTileRows = 128;
constexpr int kStages = 3, kDepth = 64;
constexpr std::int64_t kMostSplits = 16;
// Ranks are padded to sixteens, and multiplied 64 at a time by shrinks and outer products.
constexpr int kWideRanks = 64;
constexpr std::int64_t kMostDepth = std::int64_t{1} << 30;  // steps over K are counted in int

std::size_t shared_bytes_of(int tile_n) {
  return static_cast<std::size_t>(kStages * (kTileRows + tile_n) * kDepth * 2);
}

bool half(DType dtype) { return dtype == DType::kFloat16 || dtype == DType::kBFloat16; }

}  // namespace

bool ampere_copies(const ConstTensorView& view, int across, int along, DType multiply) {
  return view.dtype() == multiply && (view.stride(along) == 1 || view.dim(along) == 1) &&
         view.dim(along) % 8 == 0 && (view.stride(across) % 8 == 0 || view.dim(across) == 1) &&
         reinterpret_cast<std::uintptr_t>(view.data()) % 16 == 0;
}

Support ampere_takes(const Term& term) {
  if (!half(term.multiply)) {
    return Support::no(std::string("multiplies in ") + name_of(term.multiply) +
                       ": the matrix units take float16 and bfloat16");
  }
  if (term.y.present() && term.y.dtype() != DType::kFloat32 && term.y.dtype() != term.multiply) {
    return Support::no(std::string("y: expected float32 or ") + name_of(term.multiply) + ", got " +
                       name_of(term.y.dtype()));
  }
  if (term.x.dim(1) > kMostDepth) {
    return Support::no("x: " + std::to_string(term.x.dim(1)) + " columns");
  }
  if (term.pair.rank() > kMaxLoraRank) {
    return Support::no("rank " + std::to_string(term.pair.rank()) + ", at most " +
                       std::to_string(kMaxLoraRank));
  }
  return {};
}

AmpereShape AmpereShape::of(const Term& term) {
  AmpereShape shape;
  shape.m = term.x.dim(0);
  shape.k = term.x.dim(1);
  shape.output = term.y.present();
  shape.n = shape.output ? term.y.dim(1) : 0;
  shape.base = term.w.present() && shape.output;
  shape.rank = static_cast<int>(term.pair.rank());
  shape.dropped = term.pair.present() && term.pair.input_dropout != nullptr &&
                  term.pair.input_dropout->threshold() > 0;
  shape.masked = term.pair.present() && term.pair.output_dropout != nullptr &&
                 term.pair.output_dropout->threshold() > 0;
  shape.elements = shape.base && (!ampere_copies(term.x, 0, 1, term.multiply) ||
                                  (!ampere_copies(term.w, 1, 0, term.multiply) &&
                                   !ampere_copies(term.w, 0, 1, term.multiply)));
  return shape;
}

AmpereShape AmpereShape::of_shrink(const Term& term) {
  AmpereShape shape;
  shape.m = term.x.dim(0);
  shape.k = term.x.dim(1);
  shape.n = divide_up(term.pair.rank(), 16) * 16;
  shape.base = shape.output = true;
  shape.elements = !ampere_copies(term.x, 0, 1, term.multiply);
  return shape;
}

namespace {

// Microseconds that tiles of such a width over K in so many parts take, of the order of an H200's;
// only ratios count. A wide tile is less than two narrow ones: 64 × 64 a warp reads shared memory a
// quarter less often than 64 × 32, and L2 too.
double time_of(const AmpereShape& shape, int tile_n, std::int64_t splits, std::int64_t sms) {
  const std::int64_t steps = divide_up(divide_up(shape.k, kDepth), splits);
  const std::int64_t blocks = divide_up(shape.m, kTileRows) * divide_up(shape.n, tile_n) * splits;
  const double per_step = tile_n == 256 ? 1.0 : 0.6, start_and_end = 2.0;
  double time = static_cast<double>(divide_up(blocks, sms)) *
                (static_cast<double>(steps) * per_step + start_and_end);
  if (splits > 1) {
    // a launch, and parts that are written and read
    time += 2.5 + static_cast<double>(shape.m * shape.n * splits) * 8 / 3e6;
  }
  return time;
}

}  // namespace

AmperePlan plan_ampere(const AmpereShape& shape, const DeviceFacts& facts) {
  AmperePlan plan;
  if (!shape.output || shape.m == 0 || shape.n == 0) return plan;
  const std::int64_t rows = divide_up(shape.m, kTileRows), sms = facts.multiprocessors;
  const bool wide_fits = !shape.elements && facts.shared_bytes >= shared_bytes_of(256);
  const std::int64_t steps = divide_up(shape.k, kDepth);
  double best = 0.0;
  for (const int tile_n : {128, 256}) {
    if (tile_n == 256 && !wide_fits) continue;
    for (std::int64_t splits = 1; splits <= kMostSplits; ++splits) {
      const std::int64_t tiles = rows * divide_up(shape.n, tile_n);
      // Parts are worth it while all of them run at once, each over a few steps.
      if (splits > 1 && (tiles * splits > sms || steps < 4 * splits || !shape.base)) break;
      const double time = time_of(shape, tile_n, splits, sms);
      if (plan.tiles > 0 && time >= best) continue;
      best = time;
      plan.tile_n = tile_n;
      plan.tiles = tiles;
      plan.splits = static_cast<int>(splits);
    }
  }
  plan.split_depth = divide_up(steps, plan.splits) * kDepth;
  // whole steps each: the last parts may be left without any
  if (shape.k > 0) plan.splits = static_cast<int>(divide_up(shape.k, plan.split_depth));
  plan.shared_bytes = shared_bytes_of(plan.tile_n);
  if (shape.rank == 0 || !shape.base || shape.masked || shape.dropped || plan.splits > 1) {
    return plan;
  }
  // A block makes 64 rows of h at about 85 GB/s of x and S, in 0.15 of the time of a wide tile of
  // the same K (or 0.3 of a narrow one's), if the rank is 16 or less; of more ranks, 32 rows at a
  // time and 64 ranks a pass. What the idle blocks of the last round do within a tile's time costs
  // nothing.
  const std::int64_t passes = 2 * divide_up(shape.rank, kWideRanks) - (shape.rank <= 16 ? 1 : 0);
  const std::int64_t most = (plan.tile_n == 256 ? 5 : 2) / passes;
  const std::int64_t idle = divide_up(plan.tiles, sms) * sms - plan.tiles;
  const std::int64_t units = divide_up(shape.m, 64);
  if (idle > 0 && units <= idle * most) {
    plan.shrink_blocks = static_cast<unsigned>(std::min(idle, units));
  }
  return plan;
}

AmpereShares plan_ampere_outer(std::int64_t m, std::int64_t blocks, const DeviceFacts& facts) {
  // A block a multiprocessor, each with at least four turns of a warp.
  const std::int64_t wanted =
      std::max<std::int64_t>(1, facts.multiprocessors / std::max<std::int64_t>(1, blocks));
  AmpereShares shares;
  shares.rows = std::max<std::int64_t>(256, divide_up(divide_up(m, wanted), 64) * 64);
  shares.count = divide_up(m, shares.rows);
  return shares;
}

}  // namespace graft::cuda
