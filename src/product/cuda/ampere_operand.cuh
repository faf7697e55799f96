#pragma once

#include <cstdint>

#include "backend/cuda/element.cuh"
#include "graft/tensor_view.h"
#include "product/cuda/ampere.h"

// Operands of the products on sm_80 and later, as kernels read them.

namespace graft::cuda::ampere {

/// A matrix whose element (i, k) lies at data[i · outer + k · inner]; k is the dimension that is
/// summed over.
struct Operand {
  const void* data = nullptr;
  std::int64_t outer = 0, inner = 0;
  DType dtype = DType::kFloat32;
  /// Whether asynchronous copies of eight elements, 16 bytes, can take it along k: they are of the
  /// multiply type and dense, rows start at 16 bytes, and k is whole eights.
  bool copies = false;
  /// The same of float32: two loads of 16 bytes have eight elements.
  bool floats = false;
};

/// Element (i, k) of `view`, whose axes they are.
inline Operand operand_of(const ConstTensorView& view, int i, int k, DType multiply) {
  Operand result;
  result.data = view.data();
  result.outer = view.stride(i);
  result.inner = view.dim(k) == 1 ? 1 : view.stride(k);
  result.dtype = view.dtype();
  result.copies = ampere_copies(view, i, k, multiply);
  result.floats = ampere_copies(view, i, k, DType::kFloat32);
  return result;
}

/// Eight elements that a thread carries to shared memory at once.
template <class T>
union Eight {
  uint4 bits;
  T values[8];
  __device__ Eight() : bits{0, 0, 0, 0} {}
};

/// The first `count` of eight elements that lie `stride` apart, and zeros.
template <class T, class Source>
__device__ inline uint4 gather8(const Source* from, std::int64_t stride, int count) {
  Eight<T> eight;
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    if (e < count) {
      if constexpr (std::is_same_v<T, Source>) {
        eight.values[e] = from[e * stride];
      } else {
        eight.values[e] = from_float<T>(to_float(from[e * stride]));
      }
    }
  }
  return eight.bits;
}

/// Elements (i, k) to (i, k + 7), zeros from `depth` on; of any type and strides.
template <class T>
__device__ inline uint4 gather8(const Operand& from, std::int64_t i, std::int64_t k,
                                std::int64_t depth) {
  const std::int64_t at = i * from.outer + k * from.inner;
  const int count = depth - k >= 8 ? 8 : static_cast<int>(depth - k);
  switch (from.dtype) {
    case DType::kFloat16:
      return gather8<T>(static_cast<const __half*>(from.data) + at, from.inner, count);
    case DType::kBFloat16:
      return gather8<T>(static_cast<const __nv_bfloat16*>(from.data) + at, from.inner, count);
    default:
      return gather8<T>(static_cast<const float*>(from.data) + at, from.inner, count);
  }
}

/// The same along k where `floats`, with k whole eights.
template <class T>
__device__ inline uint4 floats8(const Operand& from, std::int64_t i, std::int64_t k) {
  const float4* at =
      reinterpret_cast<const float4*>(static_cast<const float*>(from.data) + i * from.outer + k);
  const float4 low = __ldg(at), high = __ldg(at + 1);
  return {pack2<T>(low.x, low.y), pack2<T>(low.z, low.w), pack2<T>(high.x, high.y),
          pack2<T>(high.z, high.w)};
}

}  // namespace graft::cuda::ampere
