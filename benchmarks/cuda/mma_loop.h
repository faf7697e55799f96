#pragma once

#include <cuda_runtime_api.h>

namespace graft::bench {

/// Puts on `stream` a loop of nothing but mma.sync (bfloat16, float32 sums), from registers, on
/// every multiprocessor: about so many floating-point operations, in as little time as a kernel
/// made of these instructions can take. What the path for compute capability 8.0 is measured by.
void mma_loop(cudaStream_t stream, double operations);

}  // namespace graft::bench
