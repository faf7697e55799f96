#include <string>

#include "graft/error.h"
#include "place.h"

namespace graft::pytorch {
namespace {

// Torch's caching allocator lends memory in the order of the current stream of the current device,
// and from the graph's own pool while that stream is captured. `Call` has made the device current,
// but of this library's runtime: torch keeps a device of its own that it may not have set yet.
void* allocate(void* state, std::size_t bytes, void*) {
  CUDAGuardHandle guard = nullptr;
  if (aoti_torch_create_cuda_guard(*static_cast<const int*>(state), &guard) != TORCH_SUCCESS) {
    return nullptr;
  }
  void* memory = nullptr;
  const bool lent = aoti_torch_cuda_caching_allocator_raw_alloc(bytes, &memory) == TORCH_SUCCESS;
  aoti_torch_delete_cuda_guard(guard);
  return lent ? memory : nullptr;
}

void release(void*, void* memory, void*) { aoti_torch_cuda_caching_allocator_raw_delete(memory); }

// A thread's last place: most calls come from one stream.
struct Last {
  int device = -1;
  void* stream = nullptr;
  Context context;
};

std::string capabilities_cuda(std::int64_t index) {
  return capability_lines({DeviceType::kCuda, static_cast<int>(index)});
}

}  // namespace

Context& context_of(const Tensor& x) {
  thread_local Last last;
  if (!x.is_cuda()) {
    throw Error(ErrorCode::kInvalidArgument,
                "x: expected a tensor on a CUDA device, as another tensor of the call is");
  }
  const int device = x.get_device_index();
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  if (last.device != device || last.stream != stream) {
    // That tensors are where torch says is checked with their shapes: the driver is not asked.
    last.context = Context(CudaPlace{.device = device,
                                     .stream = stream,
                                     .state = &last.device,
                                     .allocate = allocate,
                                     .free = release,
                                     .vouches = true});
    last.device = device;
    last.stream = stream;
  }
  return last.context;
}

// These kernels read a weight as it lies.
Weight weight_of(const Tensor& weight, DType multiply, bool, bool) {
  return plain_weight(weight, multiply);
}

Dropout dropout_of(double p, const std::optional<Tensor>& rng, const Tensor& x) {
  return {.p = static_cast<float>(p), .state = random_numbers(p, rng, x)};
}

STABLE_TORCH_LIBRARY_IMPL(graft, CompositeExplicitAutograd, m) {
  m.impl("capabilities_cuda", TORCH_BOX(&capabilities_cuda));
}

}  // namespace graft::pytorch
