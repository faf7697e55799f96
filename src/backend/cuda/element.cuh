#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "graft/tensor_view.h"

// Element types on the device, and loads and stores of several at a time.

namespace graft::cuda {

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__half value) { return __half2float(value); }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

/// Rounded to the nearest, ties to even.
template <class T>
__device__ inline T from_float(float value) {
  if constexpr (std::is_same_v<T, float>) {
    return value;
  } else if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(value);
  } else {
    return __float2bfloat16_rn(value);
  }
}

/// Two floats as a pair of T, the first in the low half.
template <class T>
__device__ inline std::uint32_t pack2(float low, float high) {
  if constexpr (std::is_same_v<T, __half>) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const std::uint32_t*>(&pair);
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const std::uint32_t*>(&pair);
  }
}

/// `value` as it is after a trip through T.
template <class T>
__device__ inline float rounded(float value) {
  return to_float(from_float<T>(value));
}

/// Elements that move together, in one instruction where they are 16 bytes or fewer.
template <class T, int N>
struct alignas(sizeof(T) * N <= 16 ? sizeof(T) * N : 16) Pack {
  T values[N];
};

/// Elements of T in 16 bytes.
template <class T>
inline constexpr int kPackSize = 16 / sizeof(T);

/// An element of any type.
__device__ inline float load_as_float(const void* data, DType dtype, std::int64_t index) {
  switch (dtype) {
    case DType::kFloat16:
      return to_float(static_cast<const __half*>(data)[index]);
    case DType::kBFloat16:
      return to_float(static_cast<const __nv_bfloat16*>(data)[index]);
    default:
      return static_cast<const float*>(data)[index];
  }
}

/// Stores an element of any type.
__device__ inline void store_from_float(void* data, DType dtype, std::int64_t index, float value) {
  switch (dtype) {
    case DType::kFloat16:
      static_cast<__half*>(data)[index] = from_float<__half>(value);
      break;
    case DType::kBFloat16:
      static_cast<__nv_bfloat16*>(data)[index] = from_float<__nv_bfloat16>(value);
      break;
    default:
      static_cast<float*>(data)[index] = value;
  }
}

/// `with_type(dtype, [&]<class T>(std::type_identity<T>) { ... })` for the device type of a
/// floating `dtype`: in code of the host, and in kernels that know their types when they run. The
/// pragma says that the body's own side need not be checked here.
#pragma nv_exec_check_disable
template <class Body>
__host__ __device__ decltype(auto) with_type(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::kFloat16:
      return body(std::type_identity<__half>{});
    case DType::kBFloat16:
      return body(std::type_identity<__nv_bfloat16>{});
    default:
      return body(std::type_identity<float>{});
  }
}

/// The same of a half type: kernels that are made for both know which when they run, since they
/// load, store and wait alike.
#pragma nv_exec_check_disable
template <class Body>
__host__ __device__ decltype(auto) with_half(DType dtype, Body&& body) {
  if (dtype == DType::kFloat16) return body(std::type_identity<__half>{});
  return body(std::type_identity<__nv_bfloat16>{});
}

}  // namespace graft::cuda
