#pragma once

#include <cuda.h>

#include <cstdint>

#include "backend/cuda/sm90.cuh"
#include "product/cuda/ampere_operand.cuh"
#include "product/cuda/hopper_rows.h"

// What the parts of the kernel in hopper_rows.cu share: sizes, arguments, and a block's part of a
// tile.

namespace graft::cuda::hopper_rows {

using namespace ampere;

constexpr int kBand = 64;  // columns of y, rows of wgmma
constexpr int kBandBytes = kBand * kRowBytes;
constexpr int kAddThreads = 256;  // that add up and store

// Tiles of so many rows and columns of y.
template <int Rows, int Columns>
struct Sizes {
  static constexpr int kGroups = Columns / kBand;  // warpgroups that multiply by W
  static constexpr int kWBytes = Columns * kRowBytes;
  static constexpr int kFewRows = Rows <= 64 ? 16 : 64;  // for which wgmma need not take them all
  static constexpr int kMultipliers = kGroups * 128;
  static constexpr int kCopiers = 96;  // threads that copy E, the bias and h
  static constexpr int kThreads = kMultipliers + 32 + kCopiers;
  static constexpr int kMostBlocks = Rows <= 64 ? 2 : 1;  // of a multiprocessor
};

struct Maps {
  CUtensorMap x, w;
};

struct Arguments {
  int m = 0, n = 0, k = 0;
  int steps = 0;       // of K
  int split_bits = 0;  // log2 of a tile's blocks, which share K
  int slots = 0;
  int slot_bytes = 0;
  int box_rows = 0;   // of x that are fetched, and have room in a slot
  int rank = 0;       // 0: no pair
  int rank_bits = 0;  // log2 of the ranks that there is room for: 16, 32 or 64
  float scaling = 1.0f;
  Operand expand;                  // E as (N, rank)
  const float* h_parts = nullptr;  // (of K, M, ranks), which are added up
  int parts = 0;
  const void* bias = nullptr;
  std::int64_t bias_stride = 0;
  DType bias_dtype = DType::kFloat32;
  void* y = nullptr;
  std::int64_t y_stride = 0;
  bool pairs = false;  // y can be stored two elements at a time
  float* h = nullptr;  // (M, rank), unscaled; null: not wanted
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// A block's part of a tile, and its shared memory.
template <int Rows, int Columns>
struct Block {
  using Size = Sizes<Rows, Columns>;
  const Arguments& args;
  std::uint32_t shared;
  int part;          // of K: the block's rank in its cluster
  int n0, m0, rows;  // the tile's, and rows that there are
  // Steps, from `first` on and round. Tiles beside each other start at different ones: x and S are
  // the same for all, and so many blocks that ask L2 for the same few lines wait for each other.
  int begin, end, first;

  __device__ Block(const Arguments& a, std::uint32_t at)
      : args(a), shared(at), part(static_cast<int>(cluster_rank())) {
    const int tile = static_cast<int>(blockIdx.x) >> a.split_bits;
    const int tiles = static_cast<int>(gridDim.x) >> a.split_bits;
    n0 = tile * Columns;
    m0 = static_cast<int>(blockIdx.y) * Rows;
    rows = min(Rows, a.m - m0);
    begin = a.steps * part >> a.split_bits;
    end = a.steps * (part + 1) >> a.split_bits;
    first = begin + static_cast<int>(std::int64_t{end - begin} * tile / tiles);
  }

  __device__ int steps() const { return end - begin; }
  __device__ int after(int step) const { return step + 1 == end ? begin : step + 1; }

  // A slot has x and W of a step. The matrix units may read as many rows of x as a tile has, and
  // find W where there are none.
  __device__ std::uint32_t slot(int index) const { return shared + index * args.slot_bytes; }
  __device__ int w_at() const { return args.box_rows * kRowBytes; }
  __device__ std::uint32_t barriers() const { return slot(args.slots); }
  __device__ Barrier full(int index) const { return {barriers() + index * 8}; }
  __device__ Barrier empty(int index) const { return {barriers() + (kMostSlots + index) * 8}; }
  __device__ std::uint32_t bias() const { return barriers() + kBarrierBytes; }
  // E (Columns, ranks), rows a little longer.
  __device__ std::uint32_t expand() const { return bias() + Columns * 4; }
  // s·h (Rows, ranks), likewise.
  __device__ std::uint32_t scaled() const { return expand() + Columns * row_bytes(); }
  __device__ int ranks() const { return 1 << args.rank_bits; }
  __device__ std::uint32_t row_bytes() const { return (ranks() + kPadding) * 2; }

  // Every so many-th eight rows of the tile are this block's to add up.
  __device__ int eight_of(int i) const { return part + (i << args.split_bits); }
  __device__ int own_eights() const {
    const int eights = (rows + 7) / 8;
    return (eights - part + (1 << args.split_bits) - 1) >> args.split_bits;
  }
};

// A thread's sums of Width rows to where its cluster finds them, in place of the ring, as the
// matrix units' registers have them: of eight rows each thread of a warpgroup has 16 bytes.
template <int Width, int Rows, int Columns>
__device__ void leave(const Block<Rows, Columns>& block, std::uint32_t left,
                      const float (&sum)[Rows / 2], int thread) {
#pragma unroll
  for (int j = 0; j < Width / 8; ++j) {
    if (j * 8 >= block.rows) break;
    const float* const from = sum + j * 4;
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(left + (j * 128 + thread) * 16),
                 "f"(from[0]), "f"(from[1]), "f"(from[2]), "f"(from[3])
                 : "memory");
  }
}

#endif

}  // namespace graft::cuda::hopper_rows
