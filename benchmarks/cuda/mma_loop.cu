#include <cuda_bf16.h>

#include <cstdint>

#include "backend/cuda/mma.cuh"
#include "benchmarks/cuda/device_memory.h"
#include "benchmarks/cuda/mma_loop.h"

namespace graft::bench {
namespace {

constexpr int kRows = 4, kCols = 8;  // of 16 × 8: a warp's 64 × 64, as in the product's tiles
constexpr int kThreads = 256;

// Two numbers in [1, 2) of any bits: zeros would draw less power.
__device__ std::uint32_t noise(std::uint32_t& state) {
  state = state * 0x9E3779B1u + 0x85EBCA77u;
  return (state >> 3 & 0x807F807Fu) | 0x3F803F80u;
}

__global__ void __launch_bounds__(kThreads, 1) loop(int steps, float* never) {
  std::uint32_t state = blockIdx.x * kThreads + threadIdx.x;
  std::uint32_t a[2][kRows][4], b[2][kCols][2];
  float sums[kRows][kCols][4] = {};
#pragma unroll
  for (int set = 0; set < 2; ++set) {
#pragma unroll
    for (auto& row : a[set]) {
#pragma unroll
      for (std::uint32_t& word : row) word = noise(state);
    }
#pragma unroll
    for (auto& col : b[set]) {
#pragma unroll
      for (std::uint32_t& word : col) word = noise(state);
    }
  }
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
#pragma unroll
    for (int set = 0; set < 2; ++set) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int c = 0; c < kCols; ++c) {
          cuda::mma<__nv_bfloat16>(sums[r][c], a[set][r], b[set][c]);
        }
      }
    }
  }
  float sum = 0.0f;
#pragma unroll
  for (auto& row : sums) {
#pragma unroll
    for (auto& block : row) {
#pragma unroll
      for (const float value : block) sum += value;
    }
  }
  if (sum == 0.5f) *never = sum;  // sums are kept because they might be stored
}

}  // namespace

void mma_loop(cudaStream_t stream, double operations) {
  int multiprocessors = 0;
  must(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0),
       "cudaDeviceGetAttribute");
  constexpr double kPerStep = 2.0 * 2 * kRows * kCols * 16 * 8 * 16 * (kThreads / 32);
  const int steps = static_cast<int>(operations / kPerStep / multiprocessors + 0.5);
  loop<<<static_cast<unsigned>(multiprocessors), kThreads, 0, stream>>>(steps, nullptr);
  must(cudaGetLastError(), "mma_loop");
}

}  // namespace graft::bench
