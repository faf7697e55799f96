#pragma once

#include <mlx/mlx.h>

#include <functional>
#include <string>
#include <vector>

#include "metal/machine.h"

namespace graft::standin {

namespace mx = ::mlx::core;

/// A Metal kernel of a graph: what MLX would compile and launch.
struct Launched {
  std::string name, text;
  Extent grid, group;
  Traffic traffic;
};

/// What evaluating a graph on the stand-in gave.
struct Evaluated {
  std::vector<mx::array> outputs;
  std::vector<Launched> launched;
  std::string fault;  ///< The first one; "" if there was none.
};

/// Builds the graph of `function` of `inputs` as on a machine with Metal, and evaluates it: MLX's
/// own operations on the CPU, Metal kernels on the stand-in, from the text that MLX would compile,
/// with `before` put before each.
Evaluated evaluate_on_metal(
    const std::function<std::vector<mx::array>(const std::vector<mx::array>&)>& function,
    const std::vector<mx::array>& inputs, std::uint32_t seed = 0, const std::string& before = "");

}  // namespace graft::standin
