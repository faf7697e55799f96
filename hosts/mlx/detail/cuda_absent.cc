#include <stdexcept>

#include "graft/mlx/detail/cuda_runner.h"

// In place of cuda_runner.cc where either MLX or Graft is built without CUDA.

namespace graft::mlx::detail {
namespace {

[[noreturn]] void fail() { throw std::logic_error("graft::mlx: this build runs no CUDA kernels"); }

}  // namespace

bool on_cuda(mx::Stream) { return false; }
int cuda_index(mx::Stream) { fail(); }
std::byte* cuda_memory(const mx::array&) { fail(); }
void allocate_on_cuda(mx::array&, mx::Stream) { fail(); }
mx::array dense_on_cuda(const mx::array&, mx::Stream) { fail(); }
void run_on_cuda(const CudaArrays&, const std::function<void(Context&)>&, mx::Stream) { fail(); }

}  // namespace graft::mlx::detail
