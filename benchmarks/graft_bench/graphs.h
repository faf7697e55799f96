#pragma once

#include <mlx/mlx.h>

#include <cstddef>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "benchmarks/graft_bench/problem.h"

namespace graft::bench {

using Arrays = std::vector<mx::array>;

/// y as a function of a call's inputs.
using Graph = std::function<mx::array(const Arrays&)>;

/// Of every adapter that is measured.
inline constexpr float kScaling = 2.0f;

/// {x, A, B, W} of a case, without what it has not.
Arrays inputs_of(const Case& item, const Tensors& set);

/// How many of them, the first ones, gradients are taken in: all but W, which is frozen.
std::size_t trained_inputs(const Case& item);

/// Graft's y. Without `packed`, W is taken from the inputs and packed anew each time.
mx::array fused_graph(const Case& item, const Arrays& inputs, const Weight& packed);

/// MLX's own ops, in the orders worth trying; which is best depends on the shape. y is float32.
std::vector<std::pair<std::string, Graph>> composed_graphs(const Case& item);

/// What a call has to make: y, and after it the gradients in the first `trained` inputs.
Arrays outputs_of(const Graph& graph, Pass pass, std::size_t trained, const Arrays& inputs,
                  const mx::array& dy);

}  // namespace graft::bench
