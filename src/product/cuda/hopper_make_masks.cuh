#pragma once

#include <cstdint>

#include "backend/cuda/philox.cuh"
#include "product/cuda/hopper_masks.cuh"

// The kernel that makes the masks of hopper_masks.cuh.

namespace graft::cuda::hopper {

// A thread makes the 64 bits of a row and step, from eight counters. Rows and columns past the end
// of the matrix have bits that nobody uses.
__global__ void __launch_bounds__(kMaskThreads)
    make_masks(const __grid_constant__ MaskArguments args) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  // The product starts when all blocks have come so far: what was before this kernel has ended, and
  // only masks are left to wait for.
  wait_for_kernel_before();
  let_next_kernel_start();
  const Masks masks = args.dropout.masks();
  const unsigned row_block = blockIdx.x / args.pairs, lane = threadIdx.x % 32;
  const unsigned step = (blockIdx.x - row_block * args.pairs) * 2 + threadIdx.x / kTileM;
  // Rows in the order of bits, so that turned round they are.
  const unsigned row = threadIdx.x % kTileM / 32 * 32 + element_of_bit(lane);
  const std::uint64_t first =
      masks.offset + step * 8 + (std::uint64_t{row_block} * kTileM + row) * args.row_eights;
  const std::uint32_t low = static_cast<std::uint32_t>(first);
  const std::uint32_t high = static_cast<std::uint32_t>(first >> 32);
  std::uint32_t bits[2];
  if (low <= 0xfffffff8u) {  // eight counters with one upper half
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      bits[i] = kept_bits(masks.threshold,
                          [&](int j) { return philox_words(low + i * 4 + j, high, masks.seed); });
    }
  } else {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      bits[i] = kept_bits(masks.threshold,
                          [&](int j) { return philox_words(first + i * 4 + j, masks.seed); });
    }
  }
  const std::uint64_t piece = std::uint64_t{row_block} * args.pairs * 2 + step;
  args.rows[piece * kTileM + row] = make_uint2(bits[0], bits[1]);
  if (args.columns == nullptr) return;
  std::uint32_t* const to =
      args.columns + piece * (kMaskBytes / 4) + threadIdx.x % kTileM / 32 * 64;
  to[element_of_bit(lane)] = turn_bits(bits[0], lane);
  to[element_of_bit(lane) + 32] = turn_bits(bits[1], lane);
#endif
}

}  // namespace graft::cuda::hopper
