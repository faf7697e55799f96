#pragma once

#include <cstdint>

#include "backend/cuda/mma.cuh"
#include "product/cuda/hopper_rows_block.cuh"

// The end of the kernel in hopper_rows.cu: the blocks of a cluster add up what each has summed.

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

namespace graft::cuda::hopper_rows {

// s·h of this block's own rows, from all of the cluster, in T to shared memory: own rows of
// row_bytes.
template <class T, int Rows, int Columns>
__device__ void add_h(const Block<Rows, Columns>& block, int thread) {
  using Size = Sizes<Rows, Columns>;
  const Arguments& args = block.args;
  const int ranks = block.ranks(), bits = args.rank_bits - 2;  // of quarters
  // Each block has those of warps that shared K.
  const int part_bits = 6 - args.rank_bits, parts = 1 << (args.split_bits + part_bits);
  for (int i = thread; i < block.own_eights() * 8 << bits; i += kAddThreads) {
    const int own_row = i >> bits, r = (i & ((1 << bits) - 1)) * 4, row = block.row_of(own_row);
    const std::uint32_t from = block.shared + Size::kPartsAt + (row * ranks + r) * 4;
    float sum[4] = {};
    for (int first = 0; first < parts; first += 8) {
      float4 values[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int p = first + j;
        const int there = p >> part_bits, warps = p & ((1 << part_bits) - 1);
        values[j] = p < parts ? load_there(from + (warps * Rows << args.rank_bits) * 4, there)
                              : make_float4(0, 0, 0, 0);
      }
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        sum[0] += values[j].x, sum[1] += values[j].y;
        sum[2] += values[j].z, sum[3] += values[j].w;
      }
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const bool exists = row < block.rows && r + e < args.rank;
      if (exists && block.n0 == 0 && args.h != nullptr) {
        args.h[std::int64_t{block.m0 + row} * args.rank + r + e] = sum[e];
      }
      sum[e] = exists ? sum[e] * args.scaling : 0.0f;
    }
    asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(block.scaled() +
                                                          own_row * block.row_bytes() + r * 2),
                 "r"(pack2<T>(sum[0], sum[1])), "r"(pack2<T>(sum[2], sum[3]))
                 : "memory");
  }
}

// y of this block's own rows, in eights: a warp has 16 columns, of all eights or of every other.
template <class T, int Rows, int Columns>
struct Adder {
  static constexpr int kWarps = Columns / 16, kTeams = kAddThreads / 32 / kWarps;
  static constexpr int kTurn = 2;  // eights that are under way
  const Block<Rows, Columns>& block;
  int thread, lane, warp, team, own;

  __device__ Adder(const Block<Rows, Columns>& of, int t)
      : block(of),
        thread(t),
        lane(t % 32),
        warp(t / 32 % kWarps),
        team(t / 32 / kWarps),
        own(of.own_eights()) {}

  // The sums of W's part, from own eight i on.
  __device__ void add(float (&sum)[kTurn][4], int i) const {
#pragma unroll
    for (auto& each : sum) each[0] = each[1] = each[2] = each[3] = 0.0f;
    for (int first = 0; first < (1 << block.args.split_bits); first += 2) {
      float4 values[kTurn][2];
#pragma unroll
      for (int turn = 0; turn < kTurn; ++turn) {
        const int eight = block.part + ((i + turn * kTeams) << block.args.split_bits);
        const std::uint32_t from =
            block.shared + ((warp / 4 * (Rows / 8) + eight) * 128 + thread % 128) * 16;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const bool exists = i + turn * kTeams < own && first + j < (1 << block.args.split_bits);
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
    const std::uint32_t h = block.scaled() + (i * 8 + g) * block.row_bytes() + q * 4;
    for (int r = 0; r < args.rank; r += 16) {
      std::uint32_t a[4], b[2];
      load_matrices(a, expand + r * 2);
      asm volatile("ld.shared.b32 %0, [%1];" : "=r"(b[0]) : "r"(h + r * 2) : "memory");
      asm volatile("ld.shared.b32 %0, [%1];" : "=r"(b[1]) : "r"(h + r * 2 + 16) : "memory");
      mma<T>(sum, a, b);
    }
    const int row = block.m0 + (block.part + (i << args.split_bits)) * 8 + g;
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
    float sum[kTurn][4];
    add(sum, team);
    if (block.args.rank > 0) {
      add_h<T>(block, thread);
      named_sync(3, kAddThreads);
    }
    for (int i = team;;) {
      const int next = i + kTurn * kTeams;
      // Nothing is read of the others after this.
      if (next >= own) cluster_arrive();
#pragma unroll
      for (int turn = 0; turn < kTurn; ++turn) {
        if (i + turn * kTeams < own) finish(sum[turn], i + turn * kTeams);
      }
      if (next >= own) break;
      i = next;
      add(sum, i);
    }
  }
};

}  // namespace graft::cuda::hopper_rows

#endif
