#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <vector>

#include "graft/context.h"
#include "graft/tensor_view.h"

namespace graft::bench {

/// Throws std::runtime_error with what `doing` and CUDA's own words for the error are.
void must(cudaError_t error, const char* doing);

/// Tensors in device memory, freed together. Made on the default stream: whoever uses them on
/// another waits for the device first.
class DeviceMemory {
 public:
  DeviceMemory();
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  /// A dense tensor of uniform random numbers in [-scale, scale), the same for the same seed.
  TensorView random(DType dtype, std::initializer_list<std::int64_t> shape, std::uint32_t seed,
                    float scale = 1.0f);
  /// A dense tensor of zeros.
  TensorView zeros(DType dtype, std::initializer_list<std::int64_t> shape);

 private:
  TensorView allocate(DType dtype, std::initializer_list<std::int64_t> shape);

  std::vector<void*> blocks_;
};

/// A context on device 0 whose workspace comes from blocks that are kept for whoever asks next, as
/// a framework's does. For one stream at a time.
Context pool_context(cudaStream_t stream);

}  // namespace graft::bench
