#include <cuda_runtime_api.h>

#include "backend/cuda/device.h"

namespace graft::cuda {
namespace {

// Stands for the kernels that blocks of a cluster share: what counts is what a block takes.
__global__ void __launch_bounds__(384, 1) in_clusters() {}

}  // namespace

int clusters_of_two(int index, std::size_t shared_bytes) {
  int before = 0, count = 0;
  if (cudaGetDevice(&before) != cudaSuccess || cudaSetDevice(index) != cudaSuccess) return 0;
  cudaLaunchAttribute size{};
  size.id = cudaLaunchAttributeClusterDimension;
  size.val.clusterDim = {2, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = 2, config.blockDim = 384;
  config.dynamicSmemBytes = shared_bytes;
  config.attrs = &size, config.numAttrs = 1;
  const bool known = cudaFuncSetAttribute(in_clusters, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          static_cast<int>(shared_bytes)) == cudaSuccess &&
                     cudaOccupancyMaxActiveClusters(&count, in_clusters, &config) == cudaSuccess;
  if (!known) cudaGetLastError();  // so that nobody takes it for an error of a later call
  cudaSetDevice(before);
  return known ? count : 0;
}

}  // namespace graft::cuda
