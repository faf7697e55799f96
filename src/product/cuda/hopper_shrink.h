#pragma once

#include <cstdint>

#include "backend/cuda/device.h"

// h of wide ranks for the kernel of hopper.cu, by a launch of its own. hopper_shrink.cuh has the
// picture.

namespace graft::cuda {

/// How h = x·S is shared out. A block makes 128 rows of it, all columns, over a part of K.
struct HopperShrinkPlan {
  int width = 0;  ///< Columns of h that a block makes: 128 or 256.
  int pair = 1;   ///< Row blocks that share what they fetch of S: 1 or 2.
  int splits =
      1;  ///< Parts of K: 1, 2, 3, 4 or 8. Blocks of all parts and of a pair are a cluster.
  std::int64_t clusters = 0;

  int cluster() const { return pair * splits; }
};

/// For h (m, rank) over k.
HopperShrinkPlan plan_hopper_shrink(std::int64_t m, std::int64_t k, std::int64_t rank,
                                    const DeviceFacts& facts);

}  // namespace graft::cuda
