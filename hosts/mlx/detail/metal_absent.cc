#include <stdexcept>

#include "graft/mlx/detail/metal_runner.h"

// In place of metal_runner.cc where there is no Metal.

namespace graft::mlx::detail {
namespace {

[[noreturn]] void fail() {
  throw std::runtime_error(
      "graft::mlx: this build runs no Metal kernels: evaluate on a CPU stream, or call the op on a "
      "GPU stream to compose it from MLX ops");
}

}  // namespace

void run_on_gpu(const metal::Plan&, const Arrays&, Arrays&, Arrays&, mx::Stream) { fail(); }

mx::array copied_on_gpu(const mx::array&, mx::Stream) { fail(); }

}  // namespace graft::mlx::detail
