#pragma once

#include <cstdint>

#include "metal/operations.h"
#include "metal/unfused.h"

namespace graft::standin {

/// What one direction of an operation costs on Metal.
struct Cost {
  std::size_t kernels = 0;  ///< Launches of Graft's own.
  std::size_t launches =
      0;                    ///< All: MLX's own operations too, such as copies of transposed arrays.
  std::uint64_t bytes = 0;  ///< Device memory touched, each byte once a launch.
  std::uint64_t asked_bytes = 0;        ///< The same, as often as threads ask for it.
  std::uint64_t flops = 0;              ///< Of kernels: multiply-adds and simdgroup matrices.
  std::uint64_t threadgroup_bytes = 0;  ///< Of the launch that takes most.
};

struct Costs {
  Cost forward, backward;  ///< Backward: all gradients, and nothing if not asked for.
};

/// Runs the operation's graph on the stand-in, and counts. Throws std::runtime_error with the first
/// fault.
Costs measure(const Operation& operation, const Problem& problem, bool with_backward);

}  // namespace graft::standin
