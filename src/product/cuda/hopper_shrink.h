#pragma once

#include <cstdint>

#include "backend/cuda/device.h"
#include "graft/tensor_view.h"

// h = x·S for the kernel of hopper.cu by a launch of its own: of wide ranks, and of an x that is
// masked. hopper_shrink.cuh has the picture.

namespace graft::cuda {

class Call;
namespace hopper {
struct Maps;
struct Arguments;
}  // namespace hopper

/// How h = x·S is shared out: hopper_shrink.cuh has the picture. A block makes all columns of some
/// row blocks (128 rows). Clusters of one size come in two kinds: the first ones make theirs whole,
/// and all of their blocks share S; those after them make theirs in parts of K.
struct HopperShrinkPlan {
  int width = 0;   ///< Columns of h that a block makes: 64, 128 or 256.
  int blocks = 1;  ///< Row blocks of a block: 2 only where all is made whole.
  int pair = 1;    ///< Of those in parts: blocks that share what they fetch of S: 1 or 2.
  int splits = 1;  ///< Parts of K: 1, 2, 3, 4 or 8.
  std::int64_t whole_clusters = 0, clusters = 0;  ///< The latter are all.
  bool masked = false;                            ///< x is, by Arguments::masks.

  int cluster() const { return pair * splits; }  ///< Blocks of a cluster.
  /// Rows of the boxes of 64 columns in which S is fetched where it lies as (K, rank), or as (rank,
  /// K): for the map of S.
  int s_box_rows(bool s_is_kn) const {
    const int share = width / (whole_clusters > 0 ? cluster() : pair);
    return s_is_kn && share > 64 ? 64 : share;
  }
};

/// Multiprocessors that the product needs a tile's time later than the others, of tiles of so many
/// columns.
struct HopperShrinkRoom {
  std::int64_t blocks = 0;
  int tile_n = 0;
};

/// For h (m, rank) over k.
HopperShrinkPlan plan_hopper_shrink(std::int64_t m, std::int64_t k, std::int64_t rank,
                                    const DeviceFacts& facts, HopperShrinkRoom room = {},
                                    bool masked = false);

/// Makes h as Arguments has it (h, h_scale, layers), in the type `dtype` that is multiplied, of the
/// x behind Maps::x and the S behind Maps::s; and makes the copies of Arguments. If there are
/// masks, of x or of y, the kernel that makes them comes right before this, and lets it start when
/// all that was before has ended.
void launch_hopper_shrink(const Call& call, const HopperShrinkPlan& plan, DType dtype, bool s_is_kn,
                          const hopper::Maps& maps, const hopper::Arguments& args);

}  // namespace graft::cuda
