#pragma once

#include <mlx/mlx.h>

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "graft/mlx/detail/metal_runner.h"
#include "metal/machine.h"
#include "metal/shader.h"

namespace graft::standin {

namespace mx = ::mlx::core;
using Arrays = std::vector<mx::array>;

/// A launch of a plan: what Metal would compile and run.
struct Launched {
  std::string name, text;
  Extent grid, group;
  Traffic traffic;
};

/// Executes the plans of nodes of a graph, whenever MLX evaluates them.
class Standin : public mlx::detail::MetalStandin {
 public:
  /// Threads go on in an order that is drawn from `seed`. `before` is put before each text.
  explicit Standin(std::uint32_t seed = 0, std::string before = "")
      : machine_(seed), before_(std::move(before)) {}

  void launch(const metal::Step& step, const Arrays& buffers) override;
  void copied(const mx::array& array) override;

  /// So far, in order. Not while something is evaluated.
  const std::vector<Launched>& launched() const { return launched_; }
  /// Bytes of each array that was copied to make its rows dense, likewise.
  const std::vector<std::size_t>& copies() const { return copies_; }
  /// The first thing that went wrong since the last call, "" if nothing did. After it, nothing is
  /// launched until it is taken.
  std::string take_fault();

 private:
  const Shader& shader_of(const std::string& text);
  void execute(Launched launched, const std::vector<Buffer>& buffers);

  std::mutex mutex_;  // streams have threads of their own
  Machine machine_;
  std::string before_;
  std::map<std::string, std::unique_ptr<Shader>> shaders_;
  std::vector<Launched> launched_;
  std::vector<std::size_t> copies_;
  std::string fault_;
};

/// What evaluating a graph on the stand-in gave.
struct Evaluated {
  std::vector<mx::array> outputs;
  std::vector<Launched> launched;
  std::vector<std::size_t> copies;  ///< As Standin says.
  std::string fault;                ///< The first one; "" if there was none.
};

/// Builds the graph of `function` of `inputs` as on a machine with Metal, and evaluates it: MLX's
/// own operations on the CPU, Metal kernels on a `Standin(seed, before)`.
Evaluated evaluate_on_metal(const std::function<Arrays(const Arrays&)>& function,
                            const Arrays& inputs, std::uint32_t seed = 0,
                            const std::string& before = "");

}  // namespace graft::standin
