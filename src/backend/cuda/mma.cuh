#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "backend/cuda/ptx.cuh"

// Matrix units and asynchronous copies of sm_80, one small function an instruction. A later GPU has
// them all.
//
// mma.m16n8k16: d (16, 8) += a (16, 16) · b (16, 8), float32 sums. Lane 4g + q of a warp holds
//
//     a[0]: (g, 2q..2q+1)   a[1]: (g+8, 2q..)   a[2]: (g, 2q+8..)   a[3]: (g+8, 2q+8..)
//     b[0]: (2q..2q+1, g)   b[1]: (2q+8.., g)
//     d[0], d[1]: (g, 2q), (g, 2q+1)            d[2], d[3]: (g+8, 2q), (g+8, 2q+1)

namespace graft::cuda {

template <class T>
__device__ __forceinline__ void mma(float (&d)[4], const std::uint32_t (&a)[4],
                                    const std::uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

/// A float as a sum of two that the matrix units multiply as they are, but for the last bit of a
/// quarter of all floats: tf32 has 11 significant bits, and 24 are 11, a sign, and 12.
struct alignas(8) TwoParts {
  std::uint32_t high, low;
};
__device__ __forceinline__ TwoParts in_parts(float value) {
  const std::uint32_t high = (__float_as_uint(value) + 0x1000) & 0xffffe000;  // rounded
  return {high, __float_as_uint(value - __uint_as_float(high))};
}

/// mma.m16n8k8 in tf32: d as above, and
///
///     a[0]: (g, q)   a[1]: (g+8, q)   a[2]: (g, q+4)   a[3]: (g+8, q+4)      b[0]: (q, g)   b[1]:
///     (q+4, g)
__device__ __forceinline__ void mma_tf32(float (&d)[4], const std::uint32_t (&a)[4],
                                         const std::uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// kTiles products of floats, with float32's error: low · high, high · low, high · high. What is
/// left out, low · low, is below 2⁻²⁴ of a product.
template <int kTiles, int kSums>
__device__ __forceinline__ void mma_parts(float (&d)[kSums][4], const TwoParts (&a)[4],
                                          const TwoParts (&b)[kTiles][2]) {
  const std::uint32_t high[4] = {a[0].high, a[1].high, a[2].high, a[3].high},
                      low[4] = {a[0].low, a[1].low, a[2].low, a[3].low};
#pragma unroll
  for (int t = 0; t < kTiles; ++t) mma_tf32(d[t], low, {b[t][0].high, b[t][1].high});
#pragma unroll
  for (int t = 0; t < kTiles; ++t) mma_tf32(d[t], high, {b[t][0].low, b[t][1].low});
#pragma unroll
  for (int t = 0; t < kTiles; ++t) mma_tf32(d[t], high, {b[t][0].high, b[t][1].high});
}

/// Four 8 × 8 matrices of 16-bit elements; lanes 8i to 8i + 7 give the rows' addresses of matrix i,
/// and lane 4g + q gets elements (g, 2q) and (g, 2q + 1) of it in r[i].
__device__ __forceinline__ void ldmatrix(std::uint32_t address, std::uint32_t& r0,
                                         std::uint32_t& r1, std::uint32_t& r2, std::uint32_t& r3) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r0), "=r"(r1), "=r"(r2), "=r"(r3)
               : "r"(address)
               : "memory");
}

/// The same of their transposes.
__device__ __forceinline__ void ldmatrix_trans(std::uint32_t address, std::uint32_t& r0,
                                               std::uint32_t& r1, std::uint32_t& r2,
                                               std::uint32_t& r3) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r0), "=r"(r1), "=r"(r2), "=r"(r3)
               : "r"(address)
               : "memory");
}

/// 16 bytes into shared memory, past L1; zeros, and `source` is not read, unless `exists`.
__device__ __forceinline__ void copy_async(std::uint32_t to, const void* source, bool exists) {
  asm volatile(
      "{\n"
      ".reg .pred none;\n"
      "setp.eq.u32 none, %2, 0;\n"
      "cp.async.cg.shared.global [%0], [%1], 16, none;\n"
      "}" ::"r"(to),
      "l"(source), "r"(static_cast<unsigned>(exists))
      : "memory");
}

/// A counter's value, before all that this thread reads after.
__device__ __forceinline__ unsigned load_acquire(const unsigned* counter) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
  return value;
}

}  // namespace graft::cuda
