#include <algorithm>
#include <string>

#include "product/cuda/ampere.h"

namespace graft::cuda {
namespace {

constexpr std::int64_t kTileRows = 128;
constexpr int kStages = 4, kDepth = 32;
// Ranks are padded to sixteens, and multiplied 64 at a time by shrinks and outer products.
constexpr int kWideRanks = 64;
constexpr std::int64_t kMostDepth = std::int64_t{1} << 30;  // steps over K are counted in int

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

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
  shape.masked = term.pair.present() && term.pair.output_dropout != nullptr &&
                 term.pair.output_dropout->threshold() > 0;
  shape.elements = shape.base && (!ampere_copies(term.x, 0, 1, term.multiply) ||
                                  (!ampere_copies(term.w, 1, 0, term.multiply) &&
                                   !ampere_copies(term.w, 0, 1, term.multiply)));
  return shape;
}

AmperePlan plan_ampere(const AmpereShape& shape, const DeviceFacts& facts) {
  AmperePlan plan;
  if (!shape.output || shape.m == 0 || shape.n == 0) return plan;
  const std::int64_t rows = ceil_div(shape.m, kTileRows), sms = facts.multiprocessors;
  const auto rounds = [&](int tile_n) {
    return ceil_div(rows * ceil_div(shape.n, tile_n), sms);
  };
  // 64 × 64 a warp reads shared memory a quarter less often than 64 × 32, which is what bounds it:
  // two narrow tiles take 1.15 times a wide one.
  plan.tile_n = !shape.elements && 100 * rounds(256) <= 115 * rounds(128) / 2 ? 256 : 128;
  plan.tiles = rows * ceil_div(shape.n, plan.tile_n);
  plan.shared_bytes = static_cast<std::size_t>(kStages * (kTileRows + plan.tile_n) * kDepth * 2);
  if (shape.rank == 0 || !shape.base || shape.masked) return plan;
  // A block that makes h 32 rows at a time reads x at about 85 GB/s, which takes 0.055 of the time
  // of a wide tile of the same K (or of a narrow one, twice that) for each pass over x; what idle
  // blocks of the last round do in 0.9 of a tile's time costs nothing.
  const std::int64_t idle = rounds(plan.tile_n) * sms - plan.tiles;
  const std::int64_t passes = ceil_div(shape.rank, kWideRanks);
  const std::int64_t most = (plan.tile_n == 256 ? 16 : 8) / passes;
  const std::int64_t units = ceil_div(shape.m, 32);
  if (idle > 0 && units <= idle * most) {
    plan.shrink_blocks = static_cast<unsigned>(std::min(idle, units));
  }
  return plan;
}

AmpereShares plan_ampere_outer(std::int64_t m, std::int64_t cols, int rank,
                               const DeviceFacts& facts) {
  // Two blocks a multiprocessor, each with at least four stages of rows.
  const std::int64_t blocks =
      std::max<std::int64_t>(1, ceil_div(cols, 128) * ceil_div(rank, kWideRanks));
  const std::int64_t wanted = std::max<std::int64_t>(1, 2 * facts.multiprocessors / blocks);
  AmpereShares shares;
  shares.rows = std::max<std::int64_t>(256, ceil_div(ceil_div(m, wanted), 64) * 64);
  shares.count = ceil_div(m, shares.rows);
  return shares;
}

}  // namespace graft::cuda
