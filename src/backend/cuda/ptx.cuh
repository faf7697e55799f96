#pragma once

#include <cstdint>

// Instructions that kernels of every kind use, one small function each: those of copies, of order
// between kernels, and of caches. async_copy.cuh, mma.cuh and sm90.cuh have the rest.

namespace graft::cuda {

/// The address of shared memory as instructions take it.
__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

/// Ends a batch of this thread's asynchronous copies; an empty batch counts too.
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

/// Until at most `Left` of this thread's batches, the newest, are still on their way.
template <int Left>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Left) : "memory");
}

/// For a kernel launched with Launch::overlaps: until the kernels before this one are done and
/// their writes are seen.
__device__ __forceinline__ void wait_for_kernel_before() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Lets the next kernel start, if it was launched to overlap: when all blocks of this one have come
/// here, or ended. It waits itself before it touches memory. To be said after this kernel's own
/// wait, so that what the next one may read early, weights, is older than both.
__device__ __forceinline__ void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Asks for the line of memory that holds an address, as far as the second-level cache. It has no
/// effect that can be seen, so that it may come before the wait for the kernels before this one.
__device__ __forceinline__ void prefetch(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

/// 16 bytes that are read once and written by nobody meanwhile: they are not kept in L1.
__device__ __forceinline__ uint4 load_streamed(const void* from) {
  uint4 bits;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w)
               : "l"(from));
  return bits;
}

}  // namespace graft::cuda
