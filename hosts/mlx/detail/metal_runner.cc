#include "graft/mlx/detail/metal_runner.h"

#include <mlx/allocator.h>
#include <mlx/backend/metal/device.h>
#include <mlx/primitives.h>
#include <mlx/version.h>

#include <stdexcept>
#include <string>

// Launches plans through MLX's own encoder, which keeps order between launches that share a buffer.

// The encoder is used through members that are inline in MLX's headers, so that the library has to
// be the one that these are of.
static_assert(MLX_VERSION_MAJOR == 0 && MLX_VERSION_MINOR == 32 && MLX_VERSION_PATCH == 4);

namespace graft::mlx::detail {
namespace {

void expect_same_mlx() {
  static const std::string found = mx::version();
  if (found != "0.32.4") {
    throw std::runtime_error("graft::mlx: built with MLX 0.32.4, and running with " + found);
  }
}

MTL::Size size_of(const std::array<int, 3>& size) {
  return MTL::Size(static_cast<NS::UInteger>(size[0]), static_cast<NS::UInteger>(size[1]),
                   static_cast<NS::UInteger>(size[2]));
}

// MLX compiles a text when its name is first asked for, and keeps the pipeline. A name has one
// text.
MTL::ComputePipelineState* pipeline_of(const metal::Kernel& kernel, mx::metal::Device& device) {
  const std::string name = kernel.name();
  MTL::Library* const library = device.get_library(name, [&] { return kernel.text(); });
  return device.get_kernel(name, library);
}

}  // namespace

void run_on_gpu(const metal::Plan& plan, const Arrays& inputs, Arrays& outputs, Arrays& temporaries,
                mx::Stream stream) {
  expect_same_mlx();
  mx::metal::Device& device = mx::metal::device(stream.device);
  mx::metal::CommandEncoder& encoder = mx::metal::get_command_encoder(stream);
  for (const metal::Step& step : plan.steps) {
    encoder.set_compute_pipeline_state(pipeline_of(step.kernel, device));
    int index = 0;
    for (const metal::Operand& operand : step.reads) {
      const mx::array& array = buffer_of(operand, inputs, outputs, temporaries);
      if (array.size() > 0) encoder.set_input_array(array, index);  // no memory, nothing to read
      ++index;
    }
    for (const metal::Operand& operand : step.writes) {
      mx::array array = buffer_of(operand, inputs, outputs, temporaries);
      encoder.set_output_array(array, index++);
    }
    if (!step.scalars.empty()) {
      encoder.set_bytes(step.scalars.data(), static_cast<int>(step.scalars.size()), index);
    }
    encoder.dispatch_threads(size_of(step.grid), size_of(step.threadgroup));
  }
  encoder.add_temporaries(temporaries);
}

// MLX's own primitive, whose class its library does not show: it is had through the operation,
// which evaluates nothing.
mx::array copied_on_gpu(const mx::array& x, mx::Stream stream) {
  Arrays copy{mx::contiguous(x, false, stream)};
  copy[0].primitive().eval_gpu({x}, copy);  // asks its output for its stream
  mx::metal::get_command_encoder(stream).add_temporary(copy[0]);
  return copy[0];
}

}  // namespace graft::mlx::detail
