#pragma once

#include <cstdint>

#include "backend/cuda/ptx.cuh"

// Copies to shared memory that a thread waits for later, and messages between the blocks of a
// cluster, each a PTX instruction or two.

namespace graft::cuda {

/// Copies 16 bytes to shared memory, past the first-level cache.
__device__ inline void copy_pack(std::uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(to), "l"(from) : "memory");
}

/// Zeros in 16 bytes of shared memory.
__device__ inline void clear_pack(std::uint32_t at) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};\n" ::"r"(at), "r"(0) : "memory");
}

/// Until all `threads` threads of barrier `index` (1 to 15; 0 is the block's) are here.
__device__ inline void meet(int index, int threads) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(index), "r"(threads) : "memory");
}

#if __CUDA_ARCH__ >= 900

__device__ inline int rank_in_cluster() {
  int rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;\n" : "=r"(rank));
  return rank;
}

/// The same place in the shared memory of block `rank` of the cluster.
__device__ inline std::uint32_t in_block(std::uint32_t address, int rank) {
  std::uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;\n" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}

/// Until all threads of the cluster's blocks are here. Says nothing of what they wrote.
__device__ inline void meet_cluster() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;\n" ::
                   : "memory");
}

/// A letter box is a barrier in shared memory that counts one arrival and the bytes of a round; all
/// of the cluster can use it after they met.
__device__ inline void make_box(std::uint32_t box) {
  asm volatile(
      "mbarrier.init.shared.b64 [%0], 1;\nfence.mbarrier_init.release.cluster;\n" ::"r"(box)
      : "memory");
}

/// Says what a round of the box consists of; by one thread, once a round.
__device__ inline void expect_letters(std::uint32_t box, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;\n" ::"r"(box), "r"(bytes)
               : "memory");
}

/// Writes four numbers to a block of the cluster and counts their 16 bytes in its box.
__device__ inline void send(std::uint32_t to, const float (&numbers)[4], std::uint32_t box) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, "
      "[%5];\n" ::"r"(to),
      "f"(numbers[0]), "f"(numbers[1]), "f"(numbers[2]), "f"(numbers[3]), "r"(box)
      : "memory");
}

/// Until the round of this parity is complete; what was sent in it can then be read.
__device__ inline void wait_letters(std::uint32_t box, int parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n}\n" ::"r"(box),
      "r"(parity)
      : "memory");
}

#endif

}  // namespace graft::cuda
