#pragma once

#include <mlx/mlx.h>

#include "graft/export.h"
#include "graft/weight.h"

namespace graft::mlx {

namespace mx = ::mlx::core;

/// Makes `w` (out_features, in_features) ready for the kernels of the device of `s`, evaluating it
/// if need be. `dtype` decides how products multiply: float32, bfloat16, or on GPUs float16 (see
/// Weight). Throws std::invalid_argument.
///
/// CPU kernels read W in panels, and the array is not kept; `backward` false halves the memory for
/// weights that no gradient passes through. GPUs' kernels read it as it lies: the weight owns an
/// array, row-major and of `dtype`, serves both directions, and is a plain weight elsewhere. One
/// that was packed for the CPU is not used by a GPU's kernels.
GRAFT_EXPORT Weight pack(const mx::array& w, mx::Dtype dtype = mx::float32, bool backward = true,
                         mx::StreamOrDevice s = {});

/// Bytes that `pack` would hold of an (out_features, in_features) weight.
GRAFT_EXPORT std::size_t packed_nbytes(int out_features, int in_features,
                                       mx::Dtype dtype = mx::float32, bool backward = true,
                                       mx::StreamOrDevice s = {});

/// The array that `w` was made from, rounded to its dtype; for the CPU evaluated lazily, each time.
GRAFT_EXPORT mx::array unpack(const Weight& w, mx::StreamOrDevice s = {});

}  // namespace graft::mlx
