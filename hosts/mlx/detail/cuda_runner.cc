#include "graft/mlx/detail/cuda_runner.h"

#include <mlx/allocator.h>
#include <mlx/backend/cuda/device.h>
#include <mlx/backend/cuda/utils.h>
#include <mlx/backend/gpu/device_info.h>
#include <mlx/primitives.h>
#include <mlx/version.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>

// Launches the core's kernels through MLX's own encoder. It gathers launches in a CUDA graph, and
// draws an edge from whoever wrote an array to who reads or writes it next; it knows an array by
// its buffer. It draws none from a reader to a later writer: no memory here is written twice in one
// call but by a call's own kernels, which follow one another.

// The encoder is used through members that are inline in MLX's headers, so that the library has to
// be the one that these are of.
static_assert(MLX_VERSION_MAJOR == 0 && MLX_VERSION_MINOR == 32 && MLX_VERSION_PATCH == 4);

namespace graft::mlx::detail {
namespace {

using mx::cu::CommandEncoder;

void expect_same_mlx() {
  static const std::string found = mx::version();
  if (found != "0.32.4") {
    throw std::runtime_error("graft::mlx: built with MLX 0.32.4, and running with " + found);
  }
}

// MLX's library shows neither its pool nor its copies, but its primitives have them: those of the
// operations below, which evaluate nothing here. A concatenation of nothing allocates its output.
// One of each thread and stream: a node allocates on its own stream.
mx::Primitive& concatenation(mx::Stream stream) {
  thread_local std::unordered_map<int, std::shared_ptr<mx::Primitive>> made;
  std::shared_ptr<mx::Primitive>& primitive = made[stream.index];
  if (primitive == nullptr) {
    const mx::array one({1}, mx::uint8, nullptr, {});
    primitive = mx::concatenate({one, one}, 0, stream).primitive_ptr();
  }
  return *primitive;
}

// One call of the core: where it launches, what MLX is told of each launch, and its workspace.
class Launcher {
 public:
  Launcher(const CudaArrays& arrays, mx::Stream stream)
      : stream_(stream), encoder_(mx::cu::get_command_encoder(stream)), arrays_(arrays) {}
  Launcher(const Launcher&) = delete;
  Launcher& operator=(const Launcher&) = delete;

  void run(const std::function<void(Context&)>& call) {
    CudaPlace place;
    place.device = encoder_.device().cuda_device();
    place.stream = static_cast<cudaStream_t>(encoder_.stream());
    place.state = this;
    place.allocate = [](void* state, std::size_t bytes, void*) -> void* {
      return static_cast<Launcher*>(state)->workspace(bytes);
    };
    place.free = [](void*, void*, void*) {};  // kept until the stream has run the call
    place.vouches = true;                     // MLX's arrays
    place.launch = [](void* state, const CudaKernel& kernel) {
      return static_cast<Launcher*>(state)->launch(kernel);
    };
    // First: launches are there to write them, whether or not the call then fails.
    for (const mx::array& array : arrays_.temporaries) encoder_.add_temporary(array);
    Context context(place);
    call(context);
  }

 private:
  std::byte* workspace(std::size_t bytes) {
    constexpr int kBlock = 256;
    const auto blocks = static_cast<int>((bytes + kBlock - 1) / kBlock);
    workspace_.emplace(mx::Shape{blocks, kBlock}, mx::uint8, nullptr, Arrays{});
    allocate_on_cuda(*workspace_, stream_);
    encoder_.add_temporary(*workspace_);
    return cuda_memory(*workspace_);
  }

  bool launch(const CudaKernel& kernel) {
    declare();
    const auto function = static_cast<CUfunction>(kernel.function);
    const dim3 grid(kernel.grid[0], kernel.grid[1], kernel.grid[2]);
    const dim3 block(kernel.block[0], kernel.block[1], kernel.block[2]);
    if (!kernel.cooperative) {
      encoder_.add_kernel_node_raw(function, grid, block, dim3(kernel.cluster), kernel.shared_bytes,
                                   kernel.arguments);
      return true;
    }
    // A node that MLX adds itself can't say that it is cooperative.
    CUlaunchAttribute attributes[2] = {};
    attributes[0].id = CU_LAUNCH_ATTRIBUTE_COOPERATIVE;
    attributes[0].value.cooperative = 1;
    attributes[1].id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
    attributes[1].value.clusterDim = {kernel.cluster, 1, 1};
    CUlaunchConfig config{};
    config.gridDimX = grid.x, config.gridDimY = grid.y, config.gridDimZ = grid.z;
    config.blockDimX = block.x, config.blockDimY = block.y, config.blockDimZ = block.z;
    config.sharedMemBytes = kernel.shared_bytes;
    config.hStream = static_cast<cudaStream_t>(encoder_.stream());
    config.attrs = attributes;
    config.numAttrs = 2;
    auto capture = encoder_.capture_context();
    capture.discard =
        cuLaunchKernelEx(&config, function, kernel.arguments, nullptr) != CUDA_SUCCESS;
    return !capture.discard;
  }

  // The launch that comes next depends on whoever wrote its inputs, and on the one before it, which
  // wrote the outputs.
  void declare() {
    if (std::exchange(first_, false)) {
      for (const mx::array& input : arrays_.inputs) {
        if (input.size() > 0) encoder_.set_input_array(input);
      }
    }
    for (const mx::array& output : arrays_.outputs) {
      if (output.size() > 0) encoder_.set_output_array(output);
    }
    if (workspace_) encoder_.set_output_array(*workspace_);
  }

  mx::Stream stream_;
  CommandEncoder& encoder_;
  const CudaArrays& arrays_;
  std::optional<mx::array> workspace_;
  bool first_ = true;
};

}  // namespace

bool on_cuda(mx::Stream stream) {
  if (stream.device != mx::Device::gpu) return false;
  static const bool found = mx::gpu::device_count() > 0;
  return found;
}

int cuda_index(mx::Stream stream) { return mx::cu::device(stream.device).cuda_device(); }

std::byte* cuda_memory(const mx::array& x) {
  if (x.size() == 0) return nullptr;
  return reinterpret_cast<std::byte*>(const_cast<char*>(mx::gpu_ptr<char>(x)));
}

void allocate_on_cuda(mx::array& x, mx::Stream stream) {
  expect_same_mlx();
  if (x.size() == 0) return x.set_data(mx::allocator::malloc(0));
  Arrays outputs{x};
  concatenation(stream).eval_gpu({}, outputs);
}

mx::array dense_on_cuda(const mx::array& x, mx::Stream stream) {
  Arrays copy{mx::contiguous(x, false, stream)};
  copy[0].primitive().eval_gpu({x}, copy);  // asks its output for its stream
  return copy[0];
}

void run_on_cuda(const CudaArrays& arrays, const std::function<void(Context&)>& call,
                 mx::Stream stream) {
  Launcher(arrays, stream).run(call);
}

}  // namespace graft::mlx::detail
