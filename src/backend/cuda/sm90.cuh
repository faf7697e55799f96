#pragma once

#include <cuda.h>

#include <cstdint>

#include "backend/cuda/mma.cuh"

// What Hopper (sm_90) adds for moving tiles: copies that run on their own (TMA), barriers in shared
// memory that count their bytes, and clusters of blocks that reach each other's shared memory.
// Addresses are those of the shared window, 32 bits.

namespace graft::cuda {

/// A barrier in shared memory (8 bytes). Its phase ends when the arrivals it was made for have come
/// and all bytes that were announced have landed. Phases alternate between parity 0 and 1; waiting
/// for parity 1 of a new barrier returns at once.
struct Barrier {
  std::uint32_t address;

  __device__ void init(int arrivals) const {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address), "r"(arrivals));
  }
  __device__ void arrive() const {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address) : "memory");
  }
  /// Arrives, and announces that so many bytes will be copied in.
  __device__ void arrive_and_expect(std::uint32_t bytes) const {
    asm volatile(
        "mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(address),
        "r"(bytes)
        : "memory");
  }
  /// Arrives at the barrier in the same place of block `rank` of the cluster. Not
  /// ".release.cluster" in so many words: that costs a fence of the whole device, and what is
  /// released here was read by the matrix units, which have finished.
  __device__ void arrive_at(std::uint32_t rank) const {
    asm volatile(
        "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(address),
        "r"(rank)
        : "memory");
  }
  /// The same of one that other threads wait for to read what this one has seen or written: the
  /// fence is for them. They wait with `wait_for_others`.
  __device__ void release_at(std::uint32_t rank) const {
    asm volatile(
        "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there];\n}" ::"r"(address),
        "r"(rank)
        : "memory");
  }
  __device__ void wait_for_others(std::uint32_t parity) const {
    asm volatile(
        "{\n.reg .pred done;\nagain:\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
        "@done bra.uni over;\nbra.uni again;\nover:\n}" ::"r"(address),
        "r"(parity)
        : "memory");
  }
  __device__ void wait(std::uint32_t parity) const {
    asm volatile(
        "{\n.reg .pred done;\nagain:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@done bra.uni over;\nbra.uni again;\nover:\n}" ::"r"(address),
        "r"(parity)
        : "memory");
  }
};

/// Barriers that were initialised are seen by the other block of the cluster, and by TMA.
__device__ inline void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/// A place in a ring of slots, and the parity of its current round.
struct Slot {
  int index = 0;
  std::uint32_t parity = 0;

  template <int Slots>
  __device__ void advance() {
    advance(Slots);
  }
  __device__ void advance(int slots) {
    if (++index == slots) {
      index = 0;
      parity ^= 1;
    }
  }
};

__device__ inline std::uint32_t cluster_rank() {
  std::uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

/// @{
/// All threads of all blocks of the cluster; in two halves, or at once.
__device__ inline void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
/// Of threads that have nothing to show to others but barriers that they published: a fence of the
/// whole device less.
__device__ inline void cluster_arrive_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ inline void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
__device__ inline void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}
/// @}

__device__ inline void store_floats(std::uint32_t to, float a, float b, float c, float d) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(to), "f"(a), "f"(b), "f"(c), "f"(d)
               : "memory");
}
__device__ inline std::uint32_t load_word(std::uint32_t from) {
  std::uint32_t word;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(word) : "r"(from) : "memory");
  return word;
}
__device__ inline float4 load_here(std::uint32_t from) {
  float4 value;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
               : "r"(from)
               : "memory");
  return value;
}
/// Four floats from the same place of block `rank` of the cluster.
__device__ inline float4 load_there(std::uint32_t address, int rank) {
  float4 value;
  asm volatile(
      "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %4, %5;\n"
      "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [there];\n}"
      : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
      : "r"(address), "r"(rank)
      : "memory");
  return value;
}

/// Threads of one named barrier (1 to 15) of the block.
__device__ inline void named_sync(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

/// Gives up registers, or takes those that others gave up; all warps of a warpgroup together.
template <int Registers>
__device__ inline void shrink_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
}
template <int Registers>
__device__ inline void grow_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
}

/// Fetches the map itself, which the first box would wait for.
__device__ inline void prefetch(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

/// @{
/// A box of the tensor behind `map`, with its first element at (column, row), into shared memory;
/// what is outside the tensor is zero. Its bytes are counted by `full`. The second form puts it in
/// the same place of every block of the cluster that is named in `blocks`, and counts it there.
__device__ inline void load_box(std::uint32_t to, const CUtensorMap& map, Barrier full, int column,
                                int row) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4}], [%2];" ::"r"(to),
      "l"(&map), "r"(full.address), "r"(column), "r"(row)
      : "memory");
}
__device__ inline void load_box(std::uint32_t to, const CUtensorMap& map, Barrier full, int column,
                                int row, std::uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(to),
      "l"(&map), "r"(full.address), "r"(column), "r"(row), "h"(blocks)
      : "memory");
}
/// @}

/// Brings a box to the L2 cache, for who will load it.
__device__ inline void prefetch_box(const CUtensorMap& map, int column, int row) {
  asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%0, {%1, %2}];" ::"l"(&map),
               "r"(column), "r"(row)
               : "memory");
}

/// So many bytes as they lie, a multiple of 16, into shared memory, counted by `full`.
__device__ inline void load_bytes(std::uint32_t to, const void* from, Barrier full,
                                  std::uint32_t bytes) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %3, [%2];" ::
          "r"(to),
      "l"(from), "r"(full.address), "r"(bytes)
      : "memory");
}

/// A box out of shared memory; what is outside the tensor is not written.
__device__ inline void store_box(const CUtensorMap& map, std::uint32_t from, int column, int row) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(
          &map),
      "r"(from), "r"(column), "r"(row)
      : "memory");
}
__device__ inline void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
/// Until at most `Pending` groups of this thread's stores still read shared memory.
template <int Pending>
__device__ inline void wait_for_store_reads() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(Pending) : "memory");
}
/// @{
/// Orders a thread's ordinary accesses and those of TMA and the matrix units, which go another way:
/// to shared memory; to all memory.
__device__ inline void fence_async_shared() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ inline void fence_async() { asm volatile("fence.proxy.async;" ::: "memory"); }
/// @}

/// Four 8 x 8 matrices of 16-bit elements out of registers (thread t: row t / 4, two elements from
/// column 2(t mod 4)) to shared memory; thread 8i + j has the address of row j of matrix i.
__device__ inline void store_matrices(std::uint32_t to, std::uint32_t a, std::uint32_t b,
                                      std::uint32_t c, std::uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(a),
               "r"(b), "r"(c), "r"(d)
               : "memory");
}

/// @{
/// The way back, and with each matrix turned round.
__device__ inline void load_matrices(std::uint32_t (&to)[4], std::uint32_t from) {
  ldmatrix(from, to[0], to[1], to[2], to[3]);
}
__device__ inline void load_matrices_turned(std::uint32_t (&to)[4], std::uint32_t from) {
  ldmatrix_trans(from, to[0], to[1], to[2], to[3]);
}
/// @}

/// An 8 x 8 matrix of 16-bit elements in registers, turned round: lane 4g + q has elements (g, 2q)
/// and (g, 2q + 1).
__device__ inline std::uint32_t turned(std::uint32_t matrix) {
  std::uint32_t result;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(matrix));
  return result;
}

/// What other threads wrote before they raised the flag is seen by who reads it with load_acquire.
__device__ inline void raise_release(std::uint32_t* flag) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(flag) : "memory");
}

}  // namespace graft::cuda
