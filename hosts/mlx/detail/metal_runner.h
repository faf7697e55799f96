#pragma once

#include <mlx/mlx.h>

#include <vector>

#include "graft/metal.h"

namespace graft::mlx::detail {

namespace mx = ::mlx::core;
using Arrays = std::vector<mx::array>;

// Where plans for Metal are run: on its GPU, or by a stand-in.

// Whether calls on `stream` go to Metal kernels: it is on a GPU, and that is Metal's.
bool on_metal(mx::Stream stream);

// Runs launches where there is no Metal: tests put one here, to execute what Metal would.
class MetalStandin {
 public:
  virtual ~MetalStandin() = default;
  // `buffers` are what the step reads, then what it writes. Called on the stream's thread.
  virtual void launch(const metal::Step& step, const Arrays& buffers) = 0;
  // A launch of MLX's own makes a row-major copy of an array.
  virtual void copied(const mx::array& array) = 0;
};

// While a stand-in is set, calls on any CPU stream go to Metal kernels, and it runs them. Graphs
// are to be evaluated while the one they were built under is set. Null: none. Returns the one
// before.
MetalStandin* set_metal_standin(MetalStandin* standin);
MetalStandin* metal_standin();

// Allocates outputs and temporaries, and launches the steps on `stream`: of a GPU, or, if there is
// a stand-in, of the CPU.
void run_plan(const metal::Plan& plan, const Arrays& inputs, Arrays& outputs, mx::Stream stream);

// x itself if it is row-contiguous, else a copy, made on `stream` as above.
mx::array row_contiguous(const mx::array& x, mx::Stream stream);

// The array that a step's operand is.
const mx::array& buffer_of(const metal::Operand& operand, const Arrays& inputs,
                           const Arrays& outputs, const Arrays& temporaries);

// On a GPU, with memory allocated: metal_runner.cc; in a build without Metal, metal_absent.cc.
void run_on_gpu(const metal::Plan& plan, const Arrays& inputs, Arrays& outputs, Arrays& temporaries,
                mx::Stream stream);
mx::array copied_on_gpu(const mx::array& x, mx::Stream stream);

}  // namespace graft::mlx::detail
