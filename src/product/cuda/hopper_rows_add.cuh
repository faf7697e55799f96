#pragma once

#include <cstdint>

#include "backend/cuda/mma.cuh"
#include "product/cuda/hopper_rows_block.cuh"

// The end of the kernel in hopper_rows.cu: the blocks of a cluster add up what each has summed.

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

namespace graft::cuda::hopper_rows {

// y of this block's own rows, in eights: a warp has 16 columns, of all eights or of every other.
template <class T, int Rows, int Columns>
struct Adder {
  static constexpr int kWarps = Columns / 16, kTeams = kAddThreads / 32 / kWarps;
  static constexpr int kTurn = 2;  // eights that are under way
  static constexpr int kMostRanks = static_cast<int>(kMostHopperRowsRank);
  using Size = Sizes<Rows, Columns>;
  const Block<Rows, Columns>& block;
  int thread, lane, warp, team, own;

  __device__ Adder(const Block<Rows, Columns>& of, int t)
      : block(of),
        thread(t),
        lane(t % 32),
        warp(t / 32 % kWarps),
        team(t / 32 / kWarps),
        own(of.own_eights()) {}

  // 16 bytes of each of kTurn eights from own eight i on, which a thread of a warpgroup left.
  __device__ void add_left(float (&sum)[kTurn][4], int i, std::uint32_t left, int of_thread) const {
    const int blocks = 1 << block.args.split_bits;
#pragma unroll 1
    for (int first = 0; first < blocks; first += 2) {
      float4 values[kTurn][2];
#pragma unroll
      for (int turn = 0; turn < kTurn; ++turn) {
        const std::uint32_t from =
            left + (block.eight_of(i + turn * kTeams) * 128 + of_thread) * 16;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const bool exists = i + turn * kTeams < own && first + j < blocks;
          values[turn][j] = exists ? load_there(from, first + j) : make_float4(0, 0, 0, 0);
        }
      }
#pragma unroll
      for (int turn = 0; turn < kTurn; ++turn) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const float4& value = values[turn][j];
          sum[turn][0] += value.x, sum[turn][1] += value.y;
          sum[turn][2] += value.z, sum[turn][3] += value.w;
        }
      }
    }
  }

  // The pair's part and the bias, of own eight i; and stores.
  __device__ void finish(float (&sum)[4], int i) const {
    const Arguments& args = block.args;
    const int g = lane / 4, q = lane % 4, n0 = block.n0 + warp * 16;
    const std::uint32_t expand = block.expand() +
                                 (warp * 16 + lane / 8 % 2 * 8 + lane % 8) * block.row_bytes() +
                                 lane / 16 * 16;
    const std::uint32_t scaled =
        block.scaled() + (block.eight_of(i) * 8 + g) * block.row_bytes() + q * 4;
#pragma unroll
    for (int r0 = 0; r0 < kMostRanks; r0 += 16) {
      if (r0 >= args.rank) break;
      std::uint32_t a[4];
      load_matrices(a, expand + r0 * 2);
      mma<T>(sum, a, {load_word(scaled + r0 * 2), load_word(scaled + r0 * 2 + 16)});
    }
    const int row = block.m0 + block.eight_of(i) * 8 + g;
    T* const y = static_cast<T*>(args.y) + row * args.y_stride;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (args.bias != nullptr) {
        float bias;
        asm volatile("ld.shared.f32 %0, [%1];"
                     : "=f"(bias)
                     : "r"(block.bias() + (warp * 16 + half * 8 + g) * 4)
                     : "memory");
        sum[half * 2] += bias, sum[half * 2 + 1] += bias;
      }
      // The lane has column g of rows 2q and 2q + 1, and wants columns 2q and 2q + 1 of row g.
      const std::uint32_t two = turned(pack2<T>(sum[half * 2], sum[half * 2 + 1]));
      const int n = n0 + half * 8 + 2 * q;
      if (row >= args.m || n >= args.n) continue;
      if (args.pairs) {
        *reinterpret_cast<std::uint32_t*>(y + n) = two;
      } else {
        const T* const values = reinterpret_cast<const T*>(&two);
        y[n] = values[0];
        if (n + 1 < args.n) y[n + 1] = values[1];
      }
    }
  }

  __device__ void run() const {
#pragma unroll 1
    for (int i = team, next; true; i = next) {
      float sums[kTurn][4] = {};
      add_left(sums, i, block.shared + warp / 4 * (Rows / 8) * 2048, thread % 128);
      next = i + kTurn * kTeams;
      // Nothing is read of the others after this.
      if (next >= own) cluster_arrive();
#pragma unroll
      for (int turn = 0; turn < kTurn; ++turn) {
        if (i + turn * kTeams < own) finish(sums[turn], i + turn * kTeams);
      }
      if (next >= own) break;
    }
  }
};

}  // namespace graft::cuda::hopper_rows

#endif
