#pragma once

#include <cstdint>

#include "graft/export.h"
#include "graft/metal.h"
#include "graft/tensor_view.h"

namespace graft::metal {

/// Kernels that sum a matrix over its rows sum blocks of so many rows apart.
GRAFT_EXPORT int rows_of_block(std::int64_t rows);

/// How many blocks that makes.
GRAFT_EXPORT std::int64_t row_blocks(std::int64_t rows);

/// Sums of blocks, to be added up.
struct BlockSums {
  std::int64_t features = 0;     ///< Columns.
  DType sums = DType::kFloat32;  ///< What they are rounded to.
};

/// Input: blocks (any number, features) float32. Output: sums (features). Always in the same
/// order, so that results are the same in every run.
GRAFT_EXPORT Call add_blocks(const BlockSums& call);

}  // namespace graft::metal
