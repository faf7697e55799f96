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

/// How h = x·S is shared out. A block makes 128 rows of it, all columns, over a part of K.
struct HopperShrinkPlan {
  int width = 0;  ///< Columns of h that a block makes: 64, 128 or 256.
  int pair = 1;   ///< Row blocks that share what they fetch of S: 1 or 2.
  int splits =
      1;  ///< Parts of K: 1, 2, 3, 4 or 8. Blocks of all parts and of a pair are a cluster.
  std::int64_t clusters = 0;
  bool masked = false;  ///< x is, by Arguments::masks.

  int cluster() const { return pair * splits; }
  /// Rows of the boxes of 64 columns in which S is fetched where it lies as (K, rank), or as (rank,
  /// K): for the map of S.
  int s_box_rows(bool s_is_kn) const { return !s_is_kn ? width / 2 : width == 64 ? 32 : 64; }
};

/// For h (m, rank) over k.
HopperShrinkPlan plan_hopper_shrink(std::int64_t m, std::int64_t k, std::int64_t rank,
                                    const DeviceFacts& facts, bool masked = false);

/// Makes h as Arguments has it (h, h_scale, layers), in the type `dtype` that is multiplied, of the
/// x behind Maps::x and the S behind Maps::s; and makes the copies of Arguments. If there are
/// masks, of x or of y, the kernel that makes them comes right before this, and lets it start when
/// all that was before has ended.
void launch_hopper_shrink(const Call& call, const HopperShrinkPlan& plan, DType dtype, bool s_is_kn,
                          const hopper::Maps& maps, const hopper::Arguments& args);

}  // namespace graft::cuda
