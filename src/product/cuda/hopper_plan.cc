#include <algorithm>
#include <array>
#include <cstdint>

#include "backend/cuda/integers.h"
#include "backend/cuda/tensor_map.h"
#include "graft/lora.h"
#include "product/cuda/hopper.h"

namespace graft::cuda {
namespace {

constexpr std::int64_t kClusterRows = 256;  // two tiles of 128 rows
constexpr std::int64_t kTileK = 64;
constexpr std::size_t kMostLayers = 3;  // of one launch, hopper_block.cuh's

// What a block of the kernel has in shared memory, hopper.cu's kSharedBytes: four slots of 48 KB,
// two staging buffers of 16 KB, and barriers.
constexpr std::size_t kSharedBytes = 227 * 1024;

// The time of a tile, in those of 256 columns: of fewer ones a little more than their share, for x
// is read for fewer products.
double tile_time(int tile_n) { return tile_n == 256 ? 1.0 : tile_n == 128 ? 0.51 : 0.32; }

// The time of one item, in those of a wide tile of the same K: reading x takes 0.38 of it (80 to 90
// GB/s a multiprocessor). Each part of a split K has its own start, and its sums go through memory.
double item_time(int rank_class, int parts, double k_blocks) {
  const double whole = 0.38;
  const double of_sums = rank_class <= 16 ? 2.5 : 12.0;
  return whole / parts + (parts > 1 ? of_sums : 1.0) / k_blocks;
}

// The same of an item beside which an outer product of its x is made.
constexpr double kRiddenItem = 0.46;

// Steps of a wide tile until S may have been copied, which h waits for; and the coefficients of
// outer products.
constexpr int kUntilS = 7, kUntilCopies = 10;

// What a unit of h costs beside a tile, in its steps, and after how many of those there is one: h
// is there early, and there is time for what comes after each.
constexpr double kBesideUnit = 0.6;
constexpr int kBetween = 2;

// Beside an h of up to 16 columns there are up to 16 of y in a product of 32, which takes no
// longer: it is x that it waits for.
constexpr int kRaggedClass = 32, kMostRagged = 16, kMostRankOfRagged = 16;

bool drops(const Term& term) {
  return term.pair.input_dropout != nullptr || term.pair.output_dropout != nullptr;
}

int rank_class_of(std::int64_t rank) {
  if (rank == 0) return 0;
  for (const int known : {16, 64, 128}) {
    if (rank <= known) return known;
  }
  return 256;
}

// Ranks up to which h is made beside the tiles: of more, blocks that have a tile less than others
// have no time for it.
constexpr std::int64_t kMostBeside = 64;
constexpr std::int64_t kMostMaskedBeside = 16;  // x and pairs that are masked go through registers

// What the launch before takes, in steps of a wide tile.
constexpr double kBefore = 8;

// A tile of 64 columns has no masks.
std::int64_t most_beside(int tile_n, HopperBesides besides) {
  if (!besides.masked()) return kMostBeside;
  return tile_n == 64 ? 0 : kMostMaskedBeside;
}

// Tiles and clusters, with tiles of this width, and so many ragged columns.
HopperPlan divided(int tile_n, std::int64_t m, std::span<const std::int64_t> widths,
                   std::int64_t rank, const DeviceFacts& facts, HopperBesides besides,
                   int ragged = 0) {
  HopperPlan plan;
  plan.tile_n = tile_n;
  plan.tile_rows = divide_up(m, kClusterRows);
  for (const std::int64_t n : widths) plan.tile_cols += divide_up(n - ragged, tile_n);
  plan.rank_class = ragged > 0 ? kRaggedClass : rank_class_of(rank);
  plan.ragged = ragged;
  plan.h_before = rank > most_beside(tile_n, besides);
  // One that has no tile may still make h.
  const bool makes_h = plan.rank_class > 0 && !plan.h_before;
  const std::int64_t useful = plan.tiles() + (makes_h ? plan.tile_rows : 0);
  plan.clusters = static_cast<int>(std::min<std::int64_t>(facts.clusters_of[2], useful));
  const std::int64_t last = plan.tiles() % plan.clusters;
  plan.light_clusters = last == 0 ? 0 : plan.clusters - static_cast<int>(last);
  return plan;
}

// Shares the items out, and says what they add to the time of the tiles, in wide tiles.
double share_items(HopperPlan& plan, int parts, std::int64_t k_blocks, bool masked) {
  const auto steps = static_cast<double>(k_blocks);
  const double item = item_time(plan.rank_class, 1, steps);
  const double part = item_time(plan.rank_class, parts, steps);
  const double start = kUntilS / steps, slack = tile_time(plan.tile_n) - start;
  const std::int64_t light = plan.light_clusters, heavy = plan.clusters - light;
  const std::int64_t units = divide_up(divide_up(k_blocks, 2), parts);
  plan.h_parts = parts;
  double best = 0;
  const std::int64_t most = light == 0 ? 0 : divide_up(plan.tile_rows, light);
  for (std::int64_t each = most;; --each) {
    const std::int64_t rest = std::max<std::int64_t>(0, plan.tile_rows - each * light) * parts;
    const std::int64_t others = divide_up(rest, heavy), room = k_blocks - others * units * kBetween;
    // Beside a tile there are registers for no more than 16 columns, and none for masks.
    const bool beside =
        others > 0 && plan.tile_n == 256 && plan.rank_class == 16 && !masked && room > kUntilS;
    const double heavy_time = others == 0 ? 0
                              : beside ? static_cast<double>(others * units) * kBesideUnit / steps
                                       : static_cast<double>(others) * part + start;
    const double time = std::max({0.0, static_cast<double>(each) * item - slack, heavy_time});
    if (each == most || time < best) {
      best = time;
      plan.light_items = each;
      plan.heavy_items = others;
      plan.h_every = beside ? kBetween : 0;
      plan.h_first = beside ? kUntilS : 0;
    }
    if (each == 0) return best;
  }
}

// The same with as many parts as take the least time.
double share_items_best(HopperPlan& plan, std::int64_t k_blocks, bool masked,
                        const DeviceFacts& facts) {
  double best = share_items(plan, 1, k_blocks, masked);
  for (const int parts : {2, 3, 4}) {
    if (k_blocks < 8 * parts) break;
    HopperPlan other = plan;
    const double time = share_items(other, parts, k_blocks, masked);
    if (time < best) {
      best = time;
      plan = other;
    }
  }
  for (const int parts : {2, 3, 4}) {
    HopperPlan other = plan;
    const std::int64_t items = plan.tile_rows * parts;
    if (k_blocks < 8 * parts || plan.tiles() + items > facts.clusters_of[2]) break;
    other.clusters = static_cast<int>(plan.tiles() + items);
    other.light_clusters = static_cast<int>(items);
    other.light_parts = other.h_parts = parts;
    other.light_items = 1, other.heavy_items = 0;
    other.h_every = other.h_first = 0;
    const auto steps = static_cast<double>(k_blocks);
    const double slack = tile_time(plan.tile_n) - kUntilS / steps;
    const double time = std::max(0.0, item_time(plan.rank_class, parts, steps) - slack);
    if (time < best) {
      best = time;
      plan = other;
    }
  }
  return best;
}

}  // namespace

HopperPlan plan_hopper(std::int64_t m, std::int64_t n, std::int64_t k, std::int64_t rank,
                       const DeviceFacts& facts) {
  return plan_hopper(m, {&n, 1}, k, rank, facts, {.ragged = true});
}

HopperPlan plan_hopper(std::int64_t m, std::span<const std::int64_t> widths, std::int64_t k,
                       std::int64_t rank, const DeviceFacts& facts, HopperBesides besides) {
  const std::int64_t k_blocks = divide_up(k, kTileK);
  HopperPlan best;
  double best_time = 0;
  const auto consider = [&](HopperPlan plan) {
    double time =
        static_cast<double>(divide_up(plan.tiles(), plan.clusters)) * tile_time(plan.tile_n);
    if (plan.h_before) {
      time += kBefore / static_cast<double>(k_blocks);
    } else if (plan.rank_class > 0) {
      time += share_items_best(plan, k_blocks, besides.masked(), facts);
    }
    if (best_time > 0 && time >= best_time) return;
    best = plan;
    best_time = time;
  };
  consider(divided(256, m, widths, rank, facts, besides));
  for (const int tile_n : {128, 64}) {
    if (tile_n == 64 && besides.masks_y) break;
    consider(divided(tile_n, m, widths, rank, facts, besides));
  }
  const std::int64_t ragged = widths[0] % 256;
  if (besides.ragged && !besides.masked() && widths.size() == 1 && ragged > 0 &&
      ragged <= kMostRagged && widths[0] > ragged && rank <= kMostRankOfRagged) {
    consider(divided(256, m, widths, rank, facts, besides, static_cast<int>(ragged)));
  }
  return best;
}

std::int64_t hopper_ranks(std::span<const Term> terms) {
  std::int64_t columns = 0;
  for (const Term& term : terms) {
    if (term.pair.present()) columns = divide_up(columns, 16) * 16 + term.pair.rank();
  }
  return columns;
}

HopperPlan plan_hopper(std::span<const Term> terms, const DeviceFacts& facts) {
  std::array<std::int64_t, kMostLayers> widths{};
  for (std::size_t i = 0; i < terms.size(); ++i) widths[i] = terms[i].y.dim(1);
  const bool ragged = terms[0].outer_products.empty() && !takes_tensor_map(terms[0].w);
  const LowRank& pair = terms[0].pair;
  const HopperBesides besides{pair.input_dropout != nullptr, pair.output_dropout != nullptr,
                              ragged};
  return plan_hopper(terms[0].x.dim(0), {widths.data(), terms.size()}, terms[0].x.dim(1),
                     hopper_ranks(terms), facts, besides);
}

std::size_t hopper_takes_together(std::span<const Term> terms) {
  const Term& first = terms[0];
  std::size_t count = 1;
  for (; count < std::min(terms.size(), kMostLayers); ++count) {
    const Term& term = terms[count];
    if (!first.outer_products.empty() || !term.outer_products.empty()) break;
    if (!(term.x == first.x) || term.multiply != first.multiply) break;
    if (drops(first) || drops(term)) break;  // each has masks of its own
    if (takes_tensor_map(term.w) != takes_tensor_map(first.w)) break;
    if (hopper_ranks(terms.first(count + 1)) > kMaxLoraRank) break;
  }
  return count;
}

HopperOuterPlan plan_hopper_outer(const HopperPlan& plan, std::int64_t k,
                                  std::span<const HopperOuterShape> products) {
  HopperOuterPlan outer;
  if (plan.tile_n == 64 || plan.rank_class != 16 || products.empty()) return outer;
  const std::int64_t steps = divide_up(k, kTileK);
  // Only light clusters make h, before their tiles, and have time for a product of x.
  const bool before_tiles = plan.tile_n == 256 && plan.light_items > 0 && plan.heavy_items == 0;
  const bool has_time = static_cast<double>(plan.light_items) * kRiddenItem < 1.0;
  const auto is_given = [](const HopperOuterShape& each) { return !each.of_h; };
  const auto first = std::find_if(products.begin(), products.end(), is_given);
  outer.rides = before_tiles && has_time && first != products.end() && first->of_x &&
                std::count_if(products.begin(), products.end(), is_given) == 1;
  // Clusters without a tile have none to put units beside. Those that make such a product have done
  // their share where there are few tiles.
  constexpr std::int64_t kFewTiles = 4;
  std::int64_t least_tiles = plan.tiles() / plan.clusters;  // of a light cluster
  std::int64_t workers = plan.clusters;
  if (least_tiles == 0 || (outer.rides && least_tiles < kFewTiles)) {
    workers -= plan.light_clusters;
    least_tiles = divide_up(plan.tiles(), plan.clusters);
  }
  outer.unit_cols = plan.tile_n == 256 ? 128 : 64;
  std::int64_t given = 0, made = 0;  // units of a cluster
  for (std::size_t i = 0; i < products.size(); ++i) {
    outer.order[i] = products.size() == 2 && products[0].of_h ? 1 - i : i;
    if (outer.rides && !products[i].of_h) continue;
    const std::int64_t blocks = divide_up(products[i].cols, outer.unit_cols);
    outer.column_blocks += blocks;
    outer.units[i] = blocks * plan.tile_rows;
    outer.workers[i] = std::min(workers, outer.units[i]);
    // The kernel counts in 32 bits.
    if ((outer.units[i] + 1) * plan.clusters >= std::int64_t{1} << 31) return {};
    (products[i].of_h ? made : given) += divide_up(outer.units[i], outer.workers[i]);
    outer.segments = std::max(
        outer.segments, 2 * (divide_up(plan.tile_rows * outer.workers[i], outer.units[i]) + 1));
  }
  outer.late = least_tiles <= 1;
  if (outer.late && plan.h_every > 0) return {};  // one kind of unit beside a tile
  outer.first = plan.tile_n == 256 ? kUntilCopies : 2 * kUntilCopies;
  const std::int64_t at_end = outer.late ? 2 * made : 0;
  if (at_end >= steps) return {};
  // First tiles are left alone where the others have time enough: h is late beside them.
  for (const bool in_first : {false, true}) {
    for (int every = 16; every >= 2; --every) {
      outer.of_tile = (steps - 1) / every;
      outer.of_first_tile = !in_first || plan.h_every > 0 || steps - at_end <= outer.first
                                ? 0
                                : (steps - at_end - 1 - outer.first) / every + 1;
      const std::int64_t rest =
          given - std::min(given, outer.of_first_tile) + (outer.late ? 0 : made);
      const std::int64_t later = outer.late ? 0 : (least_tiles - 1) * outer.of_tile;
      if (rest > later) continue;
      outer.every = every;
      return outer;
    }
  }
  return {};
}

std::vector<HopperOuterShape> outer_shapes(const Term& term) {
  std::vector<HopperOuterShape> shapes;
  for (const OuterProduct& each : term.outer_products) {
    const bool of_x = each.matrix == term.x && each.dropout == nullptr;
    shapes.push_back({each.matrix.dim(1), !each.coefficients.present(), of_x});
  }
  return shapes;
}

namespace {

// Whether they are made beside the tiles. Where some clusters have one tile or none, or tiles are
// narrow, a launch of their own takes less: 512 rows of 4096² 25 % of the base instead of 42, 2048
// rows 13 instead of 19; but 3000 rows 13 instead of 8.
bool makes_outer_beside(const Term& term, const DeviceFacts& facts) {
  // A forward product's kernel has no units.
  if (!takes_tensor_map(term.w) || term.bias.present()) return false;
  for (const OuterProduct& each : term.outer_products) {
    if (!each.coefficients.present() && term.pair.scaling == 0.0f) return false;
  }
  const HopperPlan plan = plan_hopper({&term, 1}, facts);
  const std::int64_t least_tiles = plan.tiles() / plan.clusters;
  if (plan.tile_n < 256 || least_tiles <= 1) return false;
  return plan_hopper_outer(plan, term.w.dim(0), outer_shapes(term)).every > 0;
}

bool makes_outer_after(const Term& term) {
  // Coefficients are converted, in eights that are counted in 32 bits.
  constexpr std::int64_t kMostEights = std::int64_t{1} << 30;
  return term.x.dim(0) * divide_up(term.pair.rank(), 8) <= kMostEights;
}

}  // namespace

OuterWay hopper_outer_way(const Term& term, const DeviceFacts& facts) {
  const auto& outer = term.outer_products;
  if (outer.empty() || outer.size() > 2 || !term.pair.present()) return OuterWay::kNone;
  for (const OuterProduct& each : outer) {
    if (each.matrix.dtype() != term.multiply || !takes_tensor_map(each.matrix)) {
      return OuterWay::kNone;
    }
    // By the masks that the tiles are masked by, and of the first one.
    const bool known = each.dropout == term.pair.output_dropout && &each == &outer.front();
    if (each.dropout != nullptr && !known) return OuterWay::kNone;
  }
  if (makes_outer_beside(term, facts)) return OuterWay::kBeside;
  return makes_outer_after(term) ? OuterWay::kAfter : OuterWay::kNone;
}

namespace {

// Dropout is on x forward and on what the pair adds to y backward: for each there are kernels of
// the order that W has there. Masks are made in eights of a row.
Support takes_dropout(const Term& term) {
  const LowRank& pair = term.pair;
  const bool drops_x = pair.input_dropout != nullptr, drops_y = pair.output_dropout != nullptr;
  if (!drops(term)) return {};
  if (drops_x && drops_y) return Support::no("dropout on both sides");
  if (takes_tensor_map(term.w) != drops_y) return Support::no("dropout: the order of w");
  if (drops_y && term.bias.present()) return Support::no("dropout and a bias");
  const std::int64_t columns = drops_x ? term.x.dim(1) : term.y.dim(1);
  if (columns % 8 != 0) return Support::no("dropout: masks are made in eights of a row");
  // Of few rows hopper_rows' base product and a pair of its own are no slower.
  constexpr std::int64_t kLeastRows = 64;
  if (drops_y && term.x.dim(0) < kLeastRows) return Support::no("dropout of few rows");
  return {};
}

}  // namespace

Support suits_hopper(const Term& term, const DeviceFacts& facts) {
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
  if (!takes_tensor_map(term.w) && !takes_tensor_map(term.w.transposed())) {
    return Support::no("w: TMA needs dense rows at 16 bytes, of itself or its transpose");
  }
  return {};
}

Support hopper_takes(const Term& term, const DeviceFacts& facts) {
  if (Support suits = suits_hopper(term, facts); !suits) return suits;
  if (facts.clusters_of[2] < 1) return Support::no("no two blocks side by side");
  if (!takes_tensor_map(term.y)) return Support::no("y: TMA needs dense rows at 16 bytes");
  // Loads end with the last element of a row; stores end with its 16 bytes.
  if (term.y.dim(1) % 8 != 0) return Support::no("y: TMA stores whole 16 bytes");
  if (!term.pair.present()) return {};
  if (term.pair.rank() < 1 || term.pair.rank() > kMaxLoraRank) return Support::no("rank");
  constexpr std::int64_t kMostFeatures = std::int64_t{1} << 26;  // copies are counted in 32 bits
  if (std::max(term.x.dim(1), term.y.dim(1)) > kMostFeatures) return Support::no("too wide");
  return takes_dropout(term);
}

}  // namespace graft::cuda
