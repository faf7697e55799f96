#pragma once

#include <mlx/array.h>

#include <cstdint>
#include <vector>

#include "graft/export.h"

namespace graft::mlx {

/// What evaluating a lazy graph on the CPU takes, in bytes.
struct GraphMemory {
  /// The most that its arrays hold at once. Not in it: arrays that are evaluated already.
  std::int64_t tensors = 0;
  /// The most that one of its operations takes besides: the context keeps it for the next one.
  std::int64_t scratch = 0;
};

/// Follows the evaluation of `outputs`, which stay, without computing anything: each operation
/// allots its results, and what it was the last to read is free when it has run. MLX allots memory
/// before operations run; `ahead` is how many of those that it has allotted for may still wait, so
/// that what they free comes too late.
///
/// Where MLX evaluates independent parts of a graph in another order, or reuses an operand's
/// memory for a result, it takes another amount.
GRAFT_EXPORT GraphMemory graph_memory(const std::vector<::mlx::core::array>& outputs,
                                      int ahead = 0);

}  // namespace graft::mlx
