#pragma once

#include <cstdint>

#include "backend/cuda/philox.cuh"
#include "backend/cuda/sm90.cuh"
#include "product/cuda/hopper_block.cuh"
#include "product/cuda/hopper_mask_bits.cuh"

// Dropout in the kernel of hopper.cu: one bit an element, 1 if it is kept, made by a kernel of its
// own before it. Philox is bound by the integer units; made by warps beside the products, or by
// those that multiply, the masks took two to five times as long as by themselves.
//
// The bits of a block's 128 rows and one step of 64 columns are 1 KB, which TMA moves in a piece:
//
//     rows     [row / 128][column / 64][row mod 128][2 words of 32 columns]
//     columns  [row / 128][column / 64][4 words of 32 rows][column mod 64]
//
// the latter for who multiplies columns of x, in outer products. Of the 32 elements of a word, four
// eights, those with even index are in its lower half and the others in its upper one:
//
//     bits of a half      15 ... 12  11 ... 8  7 ... 4  3 ... 0
//     pair 3 - bit mod 4  of eight 3      1        2        0
//
// A fragment of a thread has the pair t mod 4 of every eight, in the halves of a register. Shifted
// by t mod 4, and four more for eights 0 and 1, a word has their bits on top of its bytes, and one
// byte permutation spreads them over a register.

namespace graft::cuda::hopper {

constexpr int kMaskBytes = kTileM * 8;    // of a block's rows and one step
constexpr int kMaskSteps = 4;             // of a row's steps, the number is a multiple of a tile's
constexpr int kMaskThreads = 2 * kTileM;  // two steps a block

struct MaskArguments {
  DropoutArgs dropout;
  std::uint64_t row_eights;  // columns / 8
  unsigned pairs;            // of steps in a row
  uint2* rows;
  std::uint32_t* columns;  // or null
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Which of 32 elements a bit of a word is of.
__device__ inline int element_of_bit(int bit) {
  const int eight = bit / 4 % 2 * 2 + bit / 8 % 2;
  return eight * 8 + (3 - bit % 4) * 2 + bit / 16;
}

// The word of 32 elements, from the fields that `words_of(0)` to `words_of(3)` give: each field is
// cut off to t - 1 below the threshold t, and to t from there on, two at a time. Added up with
// their bits' weights they are the word and (t - 1)(2^32 - 1), which is 1 - t in 32 bits.
template <class WordsOf>
__device__ std::uint32_t kept_bits(std::uint32_t threshold, const WordsOf& words_of) {
  const std::uint32_t kept = threshold * 0x10001u, dropped = kept - 0x10001u;
  std::uint32_t word = threshold - 1;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const PhiloxWords fields = words_of(i);
    std::uint32_t eight = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      eight = eight * 2 + __vminu2(__vmaxu2(fields.words[j], dropped), kept);
    }
    word += eight << (i % 2 * 8 + i / 2 * 4);
  }
  return word;
}

// Bit j of lane i's word becomes bit i of lane j's: blocks of half the size change places in every
// round.
__device__ inline std::uint32_t turn_bits(std::uint32_t word, unsigned lane) {
#pragma unroll
  for (int size = 16; size > 0; size /= 2) {
    // A lane keeps the lower or the upper one of every two blocks of bits.
    const std::uint32_t low = 0xffffffffu / ((1u << size) + 1);
    const bool lower = (lane & size) == 0;
    const std::uint32_t keep = lower ? low : ~low;
    const std::uint32_t other = __shfl_xor_sync(0xffffffffu, word, size);
    const std::uint32_t moved = __funnelshift_l(other, other, lower ? size : 32 - size);
    word = (word & keep) | (moved & ~keep);
  }
  return word;
}

// The bits of a row block from a step on, where a thread of the row is.
__device__ inline const uint2* masks_at(const uint2* masks, const Arguments& args, int row_block,
                                        int step) {
  return masks + (std::int64_t{row_block} * args.mask_steps + step) * kTileM;
}

// The words of a thread's two rows and a step of 64 columns; those of the first row are at `row` in
// shared memory.
__device__ inline void load_mask_words(std::uint32_t (&words)[2][2], std::uint32_t row) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];"
                 : "=r"(words[i][0]), "=r"(words[i][1])
                 : "r"(row + i * 8 * 8)
                 : "memory");
  }
}

// Masks x (64 rows of a warpgroup, 64 columns of a step).
__device__ inline void mask_rows(std::uint32_t (*a)[4], std::uint32_t row, int thread) {
  std::uint32_t words[2][2];
  load_mask_words(words, row);
#pragma unroll
  for (int i = 0; i < 4; ++i) mask_fragment(a[i], words[0][i / 2], words[1][i / 2], i, thread);
}

// The same of a matrix that was turned round (64 columns, 128 rows); `column` is where the first
// word of the thread's first column is.
__device__ inline void mask_columns(std::uint32_t (*a)[4], std::uint32_t column, int thread) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    std::uint32_t words[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      asm volatile("ld.shared.u32 %0, [%1];"
                   : "=r"(words[j])
                   : "r"(column + (i * 64 + j * 8) * 4)
                   : "memory");
    }
    mask_fragment(a[2 * i], words[0], words[1], 0, thread);
    mask_fragment(a[2 * i + 1], words[0], words[1], 1, thread);
  }
}

// sum += value if the word of a row, shifted by thread mod 4, keeps the thread's element of an
// eight, `odd` the second of its pair. The add itself is predicated: from C++ come an add and a
// selection, which is slower than the integer units test bits.
__device__ inline void add_if_kept(float& sum, float value, std::uint32_t word, int eight,
                                   bool odd) {
  const std::uint32_t bit = 8u << ((odd ? 16 : 0) + eight % 2 * 8 + eight / 2 * 4);
  asm volatile("{\n.reg .pred kept;\nsetp.ne.b32 kept, %2, 0;\n@kept add.f32 %0, %0, %1;\n}"
               : "+f"(sum)
               : "f"(value), "r"(word & bit));
}

// value = 0 unless it is kept, by the same bit.
__device__ inline void zero_if_dropped(float& value, std::uint32_t word, int eight, bool odd) {
  const std::uint32_t bit = 8u << ((odd ? 16 : 0) + eight % 2 * 8 + eight / 2 * 4);
  asm volatile(
      "{\n.reg .pred dropped;\nsetp.eq.b32 dropped, %1, 0;\n@dropped mov.f32 %0, 0f00000000;\n}"
      : "+f"(value)
      : "r"(word & bit));
}

// The words of a row and step, from memory: here and now, so that products hide the time.
__device__ inline uint2 load_mask(const uint2* from) {
  uint2 words;
  asm volatile("ld.global.cg.v2.u32 {%0, %1}, [%2];"
               : "=r"(words.x), "=r"(words.y)
               : "l"(from)
               : "memory");
  return words;
}

#endif

}  // namespace graft::cuda::hopper
