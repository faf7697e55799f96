#pragma once

#include <mlx/mlx.h>

#include <functional>
#include <vector>

#include "graft/context.h"

namespace graft::mlx::detail {

namespace mx = ::mlx::core;
using Arrays = std::vector<mx::array>;

// Runs calls of the core on MLX's CUDA device, on MLX's own stream and memory: cuda_runner.cc; in a
// build without it, cuda_absent.cc.

// Whether calls on `stream` go to CUDA kernels: it is on a GPU, that is CUDA's, and this build has
// kernels for it.
bool on_cuda(mx::Stream stream);

// The functions below are for such streams, while a node is evaluated.

// Which device the core knows the stream's as.
int cuda_index(mx::Stream stream);

// Where kernels find the first element of x; null if it has none. Reading x on the host may move
// it.
std::byte* cuda_memory(const mx::array& x);

// Gives x memory of MLX's pool.
void allocate_on_cuda(mx::array& x, mx::Stream stream);

// A copy in row-major order, made by launches of MLX's own. It is to be kept until the stream has
// run what reads it.
mx::array dense_on_cuda(const mx::array& x, mx::Stream stream);

// What a call of the core reads and writes. MLX orders launches by it.
struct CudaArrays {
  Arrays inputs;
  Arrays outputs;      // with memory
  Arrays temporaries;  // to be kept until it has run
};

// Puts the kernels of `call(context)` on the stream, one call of the core.
void run_on_cuda(const CudaArrays& arrays, const std::function<void(Context&)>& call,
                 mx::Stream stream);

}  // namespace graft::mlx::detail
