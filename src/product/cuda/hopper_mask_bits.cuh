#pragma once

#include <cstdint>

// How the bits of hopper_masks.cuh are applied to what goes through registers.

namespace graft::cuda::hopper {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// All ones in each half of which the element is kept, from a word shifted so that their bits are on
// top of bytes 0 and 2, or 1 and 3: the permutation has those bytes' signs.
__device__ inline std::uint32_t even_mask(std::uint32_t word) {
  std::uint32_t mask;
  asm("prmt.b32 %0, %1, %1, 0xAA88;" : "=r"(mask) : "r"(word));
  return mask;
}
__device__ inline std::uint32_t odd_mask(std::uint32_t word) {
  std::uint32_t mask;
  asm("prmt.b32 %0, %1, %1, 0xBB99;" : "=r"(mask) : "r"(word));
  return mask;
}

// Masks fragment i (of 16 along K) of what goes through registers, as wgmma takes it, by the words
// of this thread's two rows.
__device__ inline void mask_fragment(std::uint32_t (&a)[4], std::uint32_t first,
                                     std::uint32_t second, int i, int thread) {
  const int shift = thread % 4 + (i % 2 == 0 ? 4 : 0);
  a[0] &= even_mask(first << shift);
  a[1] &= even_mask(second << shift);
  a[2] &= odd_mask(first << shift);
  a[3] &= odd_mask(second << shift);
}

#endif

}  // namespace graft::cuda::hopper
