#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "backend/cuda/call.h"
#include "backend/cuda/device.h"
#include "graft/supports.h"
#include "product/cuda/product.h"

// Many rows on Hopper (sm_90a): one persistent kernel whose tiles come by TMA and are multiplied by
// wgmma. hopper.cu has the picture.

namespace graft::cuda {

/// How the blocks of a device share one term. They come in clusters of two, which make tiles one
/// above the other and share those of W.
///
/// Tiles go round the clusters in turn, from the last cluster to the first, so that the first ones,
/// the light ones, may get a tile less. They have the time to make h = x·S before they turn to
/// their tiles. An item of that work is a cluster row. Where the light ones have no time for all
/// rows, the others make the rest, in items of one of `h_parts` parts of K. Where there are so few
/// tiles that many clusters have none, these make all, in such parts.
struct HopperPlan {
  int tile_n = 256;            ///< Columns of y in a tile: 256, 128 or 64.
  std::int64_t tile_rows = 0;  ///< Cluster rows: tiles of 256 rows of y, two blocks.
  std::int64_t tile_cols = 0;  ///< Tiles beside each other.
  int clusters = 0;            ///< Of two blocks each, all of which run at once.
  int light_clusters = 0;      ///< Have a tile less than the others, or none.
  int rank_class = 0;  ///< Columns of a product for h: 16, 64, 128, 256; 32 if ragged; 0: none.
  /// Columns of y behind the last whole tile that are made with h, as more of its columns: few ones
  /// that would take a column of tiles, whose time reading x takes, once more.
  int ragged = 0;
  int h_parts = 1;               ///< Parts of K, of the others' items.
  int light_parts = 1;           ///< Parts of the light ones': 1, or h_parts if these have no tile.
  std::int64_t light_items = 0;  ///< Items of each light cluster.
  std::int64_t heavy_items = 0;  ///< Items of each other cluster.
  /// The others make theirs beside their first tile, a unit of 128 along K after every so many of
  /// its steps; 0: before it. The first one comes after `h_first` steps.
  int h_every = 0, h_first = 0;
  bool h_before = false;  ///< h is made by a launch before (hopper_shrink.h), of wide ranks.

  std::int64_t tiles() const { return tile_rows * tile_cols; }
  /// Cluster rows that the light clusters make h of; and items of the others.
  std::int64_t light_rows() const {
    const std::int64_t rows = light_items * light_clusters / light_parts;
    return rows < tile_rows && !h_before ? rows : tile_rows;
  }
  std::int64_t heavy_items_of_all() const { return (tile_rows - light_rows()) * h_parts; }
  /// Items whose sums go through memory, but for those of one part.
  std::int64_t items_in_parts() const {
    return light_parts > 1 ? tile_rows * light_parts : heavy_items_of_all();
  }
};

/// For y (m, n) over k, with a pair of `rank`, 0 for none.
HopperPlan plan_hopper(std::int64_t m, std::int64_t n, std::int64_t k, std::int64_t rank,
                       const DeviceFacts& facts);

/// What a product may have besides: dropout; ragged columns, which it may without outer products
/// and where W lies as (N, K).
struct HopperBesides {
  bool masks_x = false, masks_y = false, ragged = false;

  bool masked() const { return masks_x || masks_y; }
};

/// The same for several of some widths beside each other, with as many columns of h together.
HopperPlan plan_hopper(std::int64_t m, std::span<const std::int64_t> widths, std::int64_t k,
                       std::int64_t rank, const DeviceFacts& facts, HopperBesides besides = {});

/// The same for terms that run_hopper takes together.
HopperPlan plan_hopper(std::span<const Term> terms, const DeviceFacts& facts);

/// Columns of h of all terms: each one's begin at a multiple of 16. 0: none has a pair.
std::int64_t hopper_ranks(std::span<const Term> terms);

/// An outer product, as its plan sees it.
struct HopperOuterShape {
  std::int64_t cols = 0;
  bool of_h = false;  ///< Its coefficients are the h that the term makes; or they are given.
  bool of_x = false;  ///< Its matrix is the term's x, as it is.
};

/// How outer products are made beside the tiles: a unit, the two row blocks of a cluster row by 128
/// columns (64 beside narrow tiles), after every so many steps of a tile. Units whose coefficients
/// are given may start in a cluster's first tile, those of h in its second one, when h of all rows
/// is there; or at the end of the first one, if some have no other.
struct HopperOuterPlan {
  /// The product of x whose coefficients are given has no units: it is made where h is, of the x
  /// that is there for that.
  bool rides = false;
  int every = 0;  ///< Steps of 64 along K from a unit to the next; 0: not beside the tiles.
  int first = 0;  ///< Steps before the first one in a first tile: coefficients are copied.
  std::int64_t of_first_tile = 0, of_tile = 0;  ///< Units of a first tile and of another, at most.
  bool late = false;                            ///< Those of h are at the end of the first tile.
  std::array<std::size_t, 2> order{};           ///< Of the products: given coefficients first.
  std::array<std::int64_t, 2> units{};          ///< Of each product.
  std::array<std::int64_t, 2> workers{};        ///< Clusters that share them.
  std::int64_t unit_cols = 0;                   ///< 128 or 64.
  std::int64_t column_blocks = 0;               ///< Of all products that have units.
  std::int64_t segments = 0;                    ///< Blocks that share a column block, at most.
};

/// For a term of such a plan over k, with one or two outer products.
HopperOuterPlan plan_hopper_outer(const HopperPlan& plan, std::int64_t k,
                                  std::span<const HopperOuterShape> products);

/// The same of a term's.
std::vector<HopperOuterShape> outer_shapes(const Term& term);

/// How run_hopper makes a term's outer products.
enum class OuterWay {
  kNone,    ///< Not at all, it leaves them to its caller; what it takes is not affected.
  kBeside,  ///< Beside its tiles: they are of rank 16 or less, and the term has time for them.
  kAfter,   ///< By a launch after the tiles, of any rank (hopper_outer.h).
};

/// Of a term that it takes. There are one or two of them, with the dropout of y or none on the
/// first.
OuterWay hopper_outer_way(const Term& term, const DeviceFacts& facts);
inline bool hopper_makes_outer(const Term& term, const DeviceFacts& facts) {
  return hopper_outer_way(term, facts) != OuterWay::kNone;
}

/// Whether a term's base product is one for Hopper at all: on such a device, all of one 16-bit
/// type, x and W as TMA takes them; "no" says why.
Support suits_hopper(const Term& term, const DeviceFacts& facts);

/// Whether run_hopper takes such a term on such a device; "no" says why. Looks at no data, only at
/// where it lies.
Support hopper_takes(const Term& term, const DeviceFacts& facts);

/// How many of the first terms, each of which hopper_takes says yes to, run_hopper takes together:
/// those that share x and have no outer products, one at least.
std::size_t hopper_takes_together(std::span<const Term> terms);

/// Bytes of workspace that run_hopper needs for terms that it takes.
std::size_t hopper_workspace_bytes(std::span<const Term> terms, const DeviceFacts& facts);

/// Puts terms that it takes together on the call's stream, in one launch: y, h where it is asked
/// for, and the outer products if hopper_makes_outer. `workspace` is aligned to 256 and has
/// undefined contents.
void run_hopper(const char* op, const Call& call, std::span<const Term> terms,
                std::byte* workspace);

}  // namespace graft::cuda
