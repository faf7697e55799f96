#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include "graft/context.h"

namespace graft::test {

/// Fails the test, with CUDA's words, unless a call of CUDA's has succeeded.
inline void must(cudaError_t error) { ASSERT_EQ(error, cudaSuccess) << cudaGetErrorString(error); }

/// Device 0 and a stream, with workspace from CUDA's pool in the order of the stream.
inline CudaPlace cuda_place(cudaStream_t stream) {
  CudaPlace place;
  place.stream = stream;
  place.allocate = [](void*, std::size_t bytes, void* on) -> void* {
    void* memory = nullptr;
    const cudaError_t error = cudaMallocAsync(&memory, bytes, static_cast<cudaStream_t>(on));
    return error == cudaSuccess ? memory : nullptr;
  };
  place.free = [](void*, void* memory, void* on) {
    cudaFreeAsync(memory, static_cast<cudaStream_t>(on));
  };
  return place;
}

}  // namespace graft::test
