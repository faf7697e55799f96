#include <algorithm>
#include <cstdint>

#include "backend/cuda/tensor_map.h"
#include "graft/lora.h"
#include "product/cuda/hopper.h"

namespace graft::cuda {
namespace {

constexpr std::int64_t kClusterRows = 256;  // two tiles of 128 rows
constexpr std::int64_t kTileK = 64;
constexpr std::int64_t kOuterCols = 128;

// What a block of the kernel has in shared memory, hopper.cu's kSharedBytes: four slots of 48 KB,
// two staging buffers of 16 KB, and barriers.
constexpr std::size_t kSharedBytes = 227 * 1024;

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// The time of a tile, in those of 256 columns: of fewer ones a little more than their share, for x
// is read for fewer products.
double tile_time(int tile_n) { return tile_n == 256 ? 1.0 : tile_n == 128 ? 0.54 : 0.32; }

// The time of one item, in those of a wide tile of the same K: reading x takes 0.38 of it (80 to 90
// GB/s a multiprocessor), the products of more columns than 64 longer. Each part of a split K has
// its own start, and its sums go through memory.
double item_time(int rank_class, int parts, double k_blocks) {
  const double whole = rank_class <= 64 ? 0.38 : rank_class == 128 ? 0.65 : 1.15;
  return whole / parts + (parts > 1 ? 2.5 : 1.0) / k_blocks;
}

// What a unit of h costs beside a tile, in its steps, and after how many of those there is one: h
// is there early, and there is time for what comes after each.
constexpr double kBesideUnit = 0.6;
constexpr int kBetween = 2;

int rank_class_of(std::int64_t rank) {
  if (rank == 0) return 0;
  for (const int known : {16, 64, 128}) {
    if (rank <= known) return known;
  }
  return 256;
}

// Tiles and clusters, with tiles of this width.
HopperPlan divided(int tile_n, std::int64_t m, std::int64_t n, std::int64_t rank,
                   const DeviceFacts& facts) {
  HopperPlan plan;
  plan.tile_n = tile_n;
  plan.tile_rows = divide_up(m, kClusterRows);
  plan.tile_cols = divide_up(n, tile_n);
  plan.rank_class = rank_class_of(rank);
  // One that has no tile may still make h.
  const std::int64_t useful = plan.tiles() + (rank > 0 ? plan.tile_rows : 0);
  plan.clusters =
      static_cast<int>(std::min<std::int64_t>(std::max(facts.multiprocessors / 2, 1), useful));
  const std::int64_t last = plan.tiles() % plan.clusters;
  plan.light_clusters = last == 0 ? 0 : plan.clusters - static_cast<int>(last);
  return plan;
}

// Shares the items out, and says what they add to the time of the tiles, in wide tiles.
double share_items(HopperPlan& plan, int parts, std::int64_t k_blocks) {
  const double item = item_time(plan.rank_class, parts, static_cast<double>(k_blocks));
  const double slack = tile_time(plan.tile_n);
  const std::int64_t light = plan.light_clusters, heavy = plan.clusters - light;
  plan.h_parts = parts;
  double best = 0;
  const std::int64_t items = plan.items();
  const std::int64_t units = divide_up(divide_up(k_blocks, 2), parts);

  // Beside a tile there are registers for no more than 16 columns.
  const bool fits = plan.tile_n == 256 && plan.rank_class == 16 && units * kBetween < k_blocks;
  const std::int64_t most = light == 0 ? 0 : divide_up(items, light);
  for (std::int64_t each = most;; --each) {
    const std::int64_t rest = std::max<std::int64_t>(0, items - each * light);
    const std::int64_t others = divide_up(rest, heavy);
    const bool beside = fits && others == 1;
    const double heavy_time =
        beside ? static_cast<double>(units) * kBesideUnit / static_cast<double>(k_blocks)
               : static_cast<double>(others) * item;
    const double time = std::max({0.0, static_cast<double>(each) * item - slack, heavy_time});
    if (each == most || time < best) {
      best = time;
      plan.light_items = each;
      plan.heavy_items = others;
      plan.h_every = beside ? kBetween : 0;
    }
    if (each == 0) return best;
  }
}

}  // namespace

HopperPlan plan_hopper(std::int64_t m, std::int64_t n, std::int64_t k, std::int64_t rank,
                       const DeviceFacts& facts) {
  const auto time_of = [](const HopperPlan& plan) {
    return static_cast<double>(divide_up(plan.tiles(), plan.clusters)) * tile_time(plan.tile_n);
  };
  HopperPlan plan = divided(256, m, n, rank, facts);
  for (const int tile_n : {128, 64}) {
    const HopperPlan narrow = divided(tile_n, m, n, rank, facts);
    // A narrower tile has no registers for a wider h.
    if (narrow.rank_class <= tile_n && time_of(narrow) < time_of(plan)) plan = narrow;
  }
  if (rank == 0) return plan;
  const std::int64_t k_blocks = divide_up(k, kTileK);
  HopperPlan best = plan;
  double best_time = share_items(best, 1, k_blocks);
  for (const int parts : {2, 4}) {
    if (k_blocks < 8 * parts) break;
    if (parts > 2 && plan.rank_class > 16) break;  // adding them up would take too long
    HopperPlan other = plan;
    const double time = share_items(other, parts, k_blocks);
    if (time < best_time) {
      best_time = time;
      best = other;
    }
  }
  return best;
}

HopperOuterPlan plan_hopper_outer(const HopperPlan& plan, std::int64_t k,
                                  std::int64_t column_blocks) {
  HopperOuterPlan outer;
  if (plan.tile_n != 256 || plan.rank_class != 16 || column_blocks == 0) return outer;
  if (plan.h_every > 0) return outer;  // one kind of unit beside a tile
  const std::int64_t steps = divide_up(k, kTileK);
  outer.units = column_blocks * plan.tile_rows;
  const std::int64_t each = divide_up(outer.units, plan.clusters);
  // The first tile of a cluster goes without: h has to be there.
  const std::int64_t tiles = plan.tiles() / plan.clusters - 1;
  // A cluster without a unit would have none to add to the sum of a column block.
  if (tiles < 1 || outer.units < plan.clusters) return outer;
  // The kernel counts in 32 bits.
  if ((outer.units + 1) * plan.clusters >= std::int64_t{1} << 31) return outer;
  outer.segments = 2 * (divide_up(plan.tile_rows * plan.clusters, outer.units) + 1);
  for (int every = 16; every >= 2; --every) {
    if (tiles * ((steps - 1) / every) < each) continue;
    outer.every = every;
    break;
  }
  return outer;
}

bool hopper_makes_outer(const Term& term, const DeviceFacts& facts) {
  const auto& outer = term.outer_products;
  if (outer.empty() || outer.size() > 2 || !term.pair.present()) return false;
  if (takes_tensor_map(term.w) == false)
    return false;  // a forward product: its kernel has no units
  std::int64_t column_blocks = 0;
  for (const OuterProduct& each : outer) {
    // By the masks that the tiles are masked by, and of the first one.
    const bool known = each.dropout == term.pair.output_dropout && &each == &outer.front();
    if (each.dropout != nullptr && !known) return false;
    if (each.matrix.dtype() != term.multiply) return false;
    if (!takes_tensor_map(each.matrix)) return false;
    if (!each.coefficients.present() && term.pair.scaling == 0.0f) return false;
    column_blocks += divide_up(each.matrix.dim(1), kOuterCols);
  }
  const std::int64_t m = term.x.dim(0), k = term.w.dim(0), n = term.w.dim(1);
  return plan_hopper_outer(plan_hopper(m, n, k, term.pair.rank(), facts), k, column_blocks).every >
         0;
}

namespace {

// Dropout is on x forward and on what the pair adds to y backward: for each there are kernels of
// the order that W has there. Masks are made in eights of a row, and applied to what goes through
// registers, of ranks up to 16.
Support takes_dropout(const Term& term, const DeviceFacts& facts) {
  const LowRank& pair = term.pair;
  const bool drops_x = pair.input_dropout != nullptr, drops_y = pair.output_dropout != nullptr;
  if (!drops_x && !drops_y) return {};
  if (drops_x && drops_y) return Support::no("dropout on both sides");
  if (takes_tensor_map(term.w) != drops_y) return Support::no("dropout: the order of w");
  const std::int64_t columns = drops_x ? term.x.dim(1) : term.y.dim(1);
  if (columns % 8 != 0) return Support::no("dropout: masks are made in eights of a row");
  const HopperPlan plan =
      plan_hopper(term.x.dim(0), term.w.dim(1), term.w.dim(0), pair.rank(), facts);
  if (plan.rank_class > 16) return Support::no("dropout with a rank above 16");
  if (plan.tile_n < 128) return Support::no("dropout with few tiles");
  return {};
}

}  // namespace

Support hopper_takes(const Term& term, const DeviceFacts& facts) {
  if (facts.major != 9 || facts.minor != 0) return Support::no("not Hopper");
  if (facts.shared_bytes < kSharedBytes) return Support::no("too little shared memory");
  if (!term.w.present() || !term.y.present()) return Support::no("no base product");
  if (term.accumulate) return Support::no("y is added to");
  const DType dtype = term.multiply;
  if (dtype != DType::kFloat16 && dtype != DType::kBFloat16) {
    return Support::no("not multiplied in 16 bits");
  }
  if (term.x.dtype() != dtype || term.w.dtype() != dtype || term.y.dtype() != dtype) {
    return Support::no("x, w and y are not all of one 16-bit type");
  }
  if (!takes_tensor_map(term.x)) return Support::no("x: TMA needs dense rows at 16 bytes");
  if (!takes_tensor_map(term.y)) return Support::no("y: TMA needs dense rows at 16 bytes");
  // Loads end with the last element of a row; stores end with its 16 bytes.
  if (term.y.dim(1) % 8 != 0) return Support::no("y: TMA stores whole 16 bytes");
  if (!takes_tensor_map(term.w) && !takes_tensor_map(term.w.transposed())) {
    return Support::no("w: TMA needs dense rows at 16 bytes, of itself or its transpose");
  }
  if (!term.pair.present()) return {};
  if (term.pair.rank() < 1 || term.pair.rank() > kMaxLoraRank) return Support::no("rank");
  constexpr std::int64_t kMostFeatures = std::int64_t{1} << 26;  // copies are counted in 32 bits
  if (std::max(term.x.dim(1), term.y.dim(1)) > kMostFeatures) return Support::no("too wide");
  return takes_dropout(term, facts);
}

}  // namespace graft::cuda
