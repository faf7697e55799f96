#pragma once

#include <cstdint>

#include "backend/cuda/philox.cuh"
#include "backend/cuda/sm90.cuh"
#include "product/cuda/hopper_block.cuh"

// Dropout in the kernel of hopper.cu: one bit an element, 1 if it is kept, made by a kernel of its
// own before it. Philox is bound by the integer units; made by warps beside the products, or by
// those that multiply, the masks took two to five times as long as by themselves.
//
// The bits of a block's 128 rows and one step of 64 columns are 1 KB, which TMA moves in a piece:
//
//     [row / 128][column / 64][row mod 128] of two words, 32 columns each
//
// In a word, columns 2i and 2i + 1 are bits 15 - i and 31 - i. So whoever has two neighbours in the
// halves of a register shifts the word by i, and spreads the top bit of each half over that half.

namespace graft::cuda::hopper {

constexpr int kMaskBytes = kTileM * 8;      // of a block's rows and one step
constexpr int kMaskSteps = 4;               // the steps of a row are a multiple, a tile's at most
constexpr int kMaskThreads = 2 * kTileM;    // two steps a block

struct MaskArguments {
  DropoutArgs dropout;
  std::uint64_t row_groups;  // columns / 8
  unsigned pairs;            // of steps in a row
  uint2* bits;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// The word of 32 elements, from the fields that `words_of(0)` to `words_of(3)` give: each is cut
// off to t - 1 below the threshold t, and to t from there on, two at a time. Doubled and added up
// they are the bits and (t - 1)(2^32 - 1), which is 1 - t in 32 bits.
template <class WordsOf>
__device__ std::uint32_t kept_bits(std::uint32_t threshold, const WordsOf& words_of) {
  const std::uint32_t kept = threshold * 0x10001u, dropped = kept - 0x10001u;
  std::uint32_t sum = threshold - 1;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const PhiloxWords fields = words_of(i);
    std::uint32_t four = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      four = four * 2 + __vminu2(__vmaxu2(fields.words[j], dropped), kept);
    }
    sum += four << (12 - i * 4);
  }
  return sum;
}

// The bits of a row block, from a step on.
__device__ inline const uint2* masks_at(const Arguments& args, int row_block, int step) {
  return args.masks + (std::int64_t{row_block} * args.mask_steps + step) * kTileM;
}

// All ones in each half of which a kept element, of columns 2i and 2i + 1 of a word, is.
__device__ inline std::uint32_t pair_mask(std::uint32_t word, int i) {
  std::uint32_t mask;
  asm("prmt.b32 %0, %1, %1, 0xBB99;" : "=r"(mask) : "r"(word << i));  // bytes' signs: 1, 1, 3, 3
  return mask;
}
// The same of one column of two words, two rows, whose bits are the topmost.
__device__ inline std::uint32_t top_mask(std::uint32_t low, std::uint32_t high) {
  std::uint32_t mask;
  asm("prmt.b32 %0, %1, %2, 0xFFBB;" : "=r"(mask) : "r"(low), "r"(high));
  return mask;
}

// Masks a (64 rows of a warpgroup, 64), x of a step in four fragments as wgmma takes it (thread t of
// warp w: rows 16w + t/4 and 8 on, two columns from 2(t mod 4) on, and 8 on). `row` is where the
// bits of the first row are, in shared memory.
__device__ inline void mask_rows(std::uint32_t (*a)[4], std::uint32_t row, int thread) {
#pragma unroll
  for (int lower = 0; lower < 2; ++lower) {
    std::uint32_t words[2];
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];"
                 : "=r"(words[0]), "=r"(words[1])
                 : "r"(row + lower * 8 * 8)
                 : "memory");
    words[0] <<= thread % 4;
    words[1] <<= thread % 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a[i][lower] &= pair_mask(words[i / 2], i % 2 * 8);
      a[i][2 + lower] &= pair_mask(words[i / 2], i % 2 * 8 + 4);
    }
  }
}

// Masks a fragment of a matrix that was turned round: this thread's columns, c and c + 8 of a step,
// by its rows, two from `rows` on and two 8 on. `rows` is where the word with both columns of the
// first row is, in shared memory; `shift` brings the bit of column c to the top.
__device__ inline void mask_turned(std::uint32_t (&a)[4], std::uint32_t rows, int shift) {
  std::uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    asm volatile("ld.shared.u32 %0, [%1];"
                 : "=r"(words[i])
                 : "r"(rows + (i / 2 * 8 + i % 2) * 8)
                 : "memory");
    words[i] <<= shift;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    a[i * 2] &= top_mask(words[i * 2], words[i * 2 + 1]);
    a[i * 2 + 1] &= top_mask(words[i * 2] << 4, words[i * 2 + 1] << 4);
  }
}

#endif

// A thread makes the 64 bits of a row and step, from eight counters. Rows and columns past the end
// of the matrix have bits that nobody uses.
__global__ void __launch_bounds__(kMaskThreads)
    make_masks(const __grid_constant__ MaskArguments args) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  // The product waits for nothing that was before this kernel: it starts after this wait.
  wait_for_kernel_before();
  let_kernel_after_start();
  const Masks masks = args.dropout.masks();
  const unsigned row_block = blockIdx.x / args.pairs;
  const unsigned step = (blockIdx.x - row_block * args.pairs) * 2 + threadIdx.x / kTileM;
  const unsigned row = threadIdx.x % kTileM;
  const std::uint64_t first = masks.offset + step * 8 +
                              (std::uint64_t{row_block} * kTileM + row) * args.row_groups;
  const std::uint32_t low = static_cast<std::uint32_t>(first);
  const std::uint32_t high = static_cast<std::uint32_t>(first >> 32);
  std::uint32_t bits[2];
  if (low <= 0xfffffff8u) {  // eight counters with one upper half
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      bits[i] = kept_bits(masks.threshold, [&](int j) {
        return philox_words(low + i * 4 + j, high, masks.seed);
      });
    }
  } else {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      bits[i] = kept_bits(masks.threshold,
                          [&](int j) { return philox_words(first + i * 4 + j, masks.seed); });
    }
  }
  args.bits[(std::uint64_t{row_block} * args.pairs * 2 + step) * kTileM + row] =
      make_uint2(bits[0], bits[1]);
#endif
}

}  // namespace graft::cuda::hopper
