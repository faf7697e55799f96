#include <cuda_runtime_api.h>

#include "backend/cuda/device.h"

namespace graft::cuda {
namespace {

// Stands for the kernels that blocks of a cluster share: what counts is what a block takes.
__global__ void __launch_bounds__(384, 1) in_clusters() {}

}  // namespace

int count_clusters(int index, std::size_t shared_bytes, int blocks) {
  int before = 0, count = 0;
  if (cudaGetDevice(&before) != cudaSuccess || cudaSetDevice(index) != cudaSuccess) return 0;
  cudaLaunchAttribute size{};
  size.id = cudaLaunchAttributeClusterDimension;
  size.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(blocks), config.blockDim = 384;
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
