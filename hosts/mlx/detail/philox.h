#pragma once

#include <mlx/mlx.h>

namespace graft::mlx::detail {

namespace mx = ::mlx::core;

// drop(x) from MLX ops, bit for bit the mask of graft/lora.h: element e of x in row-major order is
// kept, and scaled in float32, if field e mod 8 of Philox(key = seed, counter = offset + e / 8) is
// not below the threshold of p. seed and offset are uint64 with one element.
mx::array composed_dropout(const mx::array& x, float p, const mx::array& seed,
                           const mx::array& offset, mx::Stream s);

}  // namespace graft::mlx::detail
