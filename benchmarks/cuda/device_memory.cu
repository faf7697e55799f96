#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "benchmarks/cuda/device_memory.h"

namespace graft::bench {
namespace {

// Uniform in [-scale, scale): a multiplicative hash of the index is random enough to keep the power
// that a multiplier draws honest, which zeros would not.
template <class T>
__global__ void fill(T* values, std::size_t count, std::uint32_t seed, float scale) {
  const std::size_t step = std::size_t{gridDim.x} * blockDim.x;
  for (std::size_t i = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    std::uint32_t bits = static_cast<std::uint32_t>(i) * 0x9E3779B1u ^ seed * 0x85EBCA77u;
    bits ^= bits >> 15, bits *= 0x2C1B3C6Du, bits ^= bits >> 12, bits *= 0x297A2D39u;
    bits ^= bits >> 15;
    const float unit = static_cast<float>(bits >> 8) * (1.0f / 8388608.0f) - 1.0f;
    values[i] = static_cast<T>(unit * scale);
  }
}

// Blocks that were freed, for whoever asks next, as frameworks keep theirs: a graph that is
// captured has no nodes of an allocator between its kernels.
std::vector<std::pair<void*, std::size_t>> kept, lent;

void* allocate_from_pool(void*, std::size_t bytes, void*) {
  const auto fits = std::find_if(kept.begin(), kept.end(),
                                 [bytes](const auto& block) { return block.second >= bytes; });
  if (fits != kept.end()) {
    lent.push_back(*fits);
    kept.erase(fits);
  } else {
    void* memory = nullptr;
    if (cudaMalloc(&memory, bytes) != cudaSuccess) return nullptr;
    lent.emplace_back(memory, bytes);
  }
  return lent.back().first;
}

void free_to_pool(void*, void* memory, void*) {
  const auto block = std::find_if(lent.begin(), lent.end(),
                                  [memory](const auto& each) { return each.first == memory; });
  kept.push_back(*block);
  lent.erase(block);
}

}  // namespace

void must(cudaError_t error, const char* doing) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string(doing) + ": " + cudaGetErrorString(error));
  }
}

// The pool keeps what is freed: asking the driver for memory takes longer than most cases.
DeviceMemory::DeviceMemory() {
  cudaMemPool_t pool = nullptr;
  must(cudaDeviceGetDefaultMemPool(&pool, 0), "cudaDeviceGetDefaultMemPool");
  std::uint64_t all = ~std::uint64_t{0};
  must(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &all),
       "cudaMemPoolSetAttribute");
}

DeviceMemory::~DeviceMemory() {
  cudaDeviceSynchronize();
  for (void* block : blocks_) cudaFreeAsync(block, nullptr);
}

TensorView DeviceMemory::allocate(DType dtype, std::initializer_list<std::int64_t> shape) {
  const TensorView none(nullptr, dtype, shape);
  void* block = nullptr;
  must(cudaMalloc(&block, static_cast<std::size_t>(none.size()) * size_of(dtype) + 1),
       "cudaMalloc");
  blocks_.push_back(block);
  return {block, dtype, shape, {DeviceType::kCuda, 0}};
}

TensorView DeviceMemory::random(DType dtype, std::initializer_list<std::int64_t> shape,
                                std::uint32_t seed, float scale) {
  const TensorView tensor = allocate(dtype, shape);
  const auto count = static_cast<std::size_t>(tensor.size());
  constexpr int kBlocks = 1024, kThreads = 256;
  switch (dtype) {
    case DType::kFloat16:
      fill<<<kBlocks, kThreads>>>(tensor.mutable_data_as<__half>(), count, seed, scale);
      break;
    case DType::kBFloat16:
      fill<<<kBlocks, kThreads>>>(tensor.mutable_data_as<__nv_bfloat16>(), count, seed, scale);
      break;
    default:
      fill<<<kBlocks, kThreads>>>(tensor.mutable_data_as<float>(), count, seed, scale);
  }
  must(cudaGetLastError(), "fill");
  return tensor;
}

TensorView DeviceMemory::zeros(DType dtype, std::initializer_list<std::int64_t> shape) {
  const TensorView tensor = allocate(dtype, shape);
  must(cudaMemset(tensor.mutable_data(), 0,
                  static_cast<std::size_t>(tensor.size()) * size_of(dtype)),
       "cudaMemset");
  return tensor;
}

Context pool_context(cudaStream_t stream) {
  return Context(
      {.device = 0, .stream = stream, .allocate = allocate_from_pool, .free = free_to_pool});
}

}  // namespace graft::bench
