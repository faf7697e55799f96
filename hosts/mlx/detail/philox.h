#pragma once

#include <mlx/mlx.h>

#include <cstdint>

namespace graft::mlx::detail {

namespace mx = ::mlx::core;

// Words below this are dropped: p, below 1, as a fraction of 2³², rounded up.
std::uint32_t dropout_threshold(float p);

// drop(x) = mask·x / (1 − p) from MLX ops, bit for bit the mask of graft/lora.h: element e of x in
// row-major order is kept if word e mod 4 of Philox(key = seed, counter = offset + e / 4), as a
// fraction of 2³², is at least p. seed and offset are uint64 with one element.
mx::array composed_dropout(const mx::array& x, float p, const mx::array& seed,
                           const mx::array& offset, mx::Stream s);

}  // namespace graft::mlx::detail
