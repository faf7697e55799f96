#include "backend/cuda/tensor_map.h"

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

#include "graft/error.h"

namespace graft::cuda {
namespace {

constexpr std::int64_t kAlignment = 16;
// Coordinates are 32 bits, signed; boxes may begin past the end.
constexpr std::int64_t kMostIndices = (std::int64_t{1} << 31) - 1024;
constexpr std::int64_t kMostStrideBytes = std::int64_t{1} << 40;

using Encode = decltype(&cuTensorMapEncodeTiled);

// The driver's function, found at run time: the library links with no libcuda, so that it starts
// where there is none.
Encode encode() {
  static const Encode found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result{};
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                         cudaEnableDefault, &result) != cudaSuccess ||
        result != cudaDriverEntryPointSuccess) {
      cudaGetLastError();
      function = nullptr;
    }
    return reinterpret_cast<Encode>(function);
  }();
  return found;
}

// Makes the context of the thread's current device the thread's, as setting the device does.
bool bind_context() {
  int device = 0;
  return cudaGetDevice(&device) == cudaSuccess && cudaSetDevice(device) == cudaSuccess;
}

[[noreturn]] void fail(const char* op, const std::string& message) {
  throw Error(ErrorCode::kDevice, "[" + std::string(op) + "] cuTensorMapEncodeTiled: " + message);
}

}  // namespace

bool takes_tensor_map(const ConstTensorView& matrix) {
  if (matrix.dtype() != DType::kFloat16 && matrix.dtype() != DType::kBFloat16) return false;
  return has_map_rows(matrix);
}

bool has_map_rows(const ConstTensorView& matrix) {
  const auto size = static_cast<std::int64_t>(size_of(matrix.dtype()));
  const std::int64_t rows = matrix.dim(0), columns = matrix.dim(1);
  if (rows < 1 || columns < 1 || rows >= kMostIndices || columns >= kMostIndices) return false;
  if (columns > 1 && matrix.stride(1) != 1) return false;
  if (reinterpret_cast<std::uintptr_t>(matrix.data()) % kAlignment != 0) return false;
  const std::int64_t stride = matrix.stride(0) * size;
  return rows == 1 ||
         (stride >= columns * size && stride < kMostStrideBytes && stride % kAlignment == 0);
}

CUtensorMap tensor_map(const char* op, const void* data, DType dtype, std::int64_t rows,
                       std::int64_t columns, std::int64_t row_stride, int box_rows,
                       int box_columns) {
  if (encode() == nullptr) fail(op, "the driver does not have it");
  CUtensorMap map;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  // The way to a second row that is not there still has to look like one.
  const auto size = static_cast<std::int64_t>(size_of(dtype));
  const std::int64_t stride = rows > 1 ? row_stride * size : (columns * size + 15) / 16 * 16;
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(stride)};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(box_columns),
                            static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[] = {1, 1};
  const CUtensorMapDataType type = dtype == DType::kFloat16    ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                   : dtype == DType::kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                               : CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
  const std::int64_t box_bytes = box_columns * size;
  const CUtensorMapSwizzle swizzle = box_bytes == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
                                     : box_bytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                                       : CU_TENSOR_MAP_SWIZZLE_32B;
  const auto make = [&] {
    return encode()(&map, type, 2, const_cast<void*>(data), sizes, strides, box, steps,
                    CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                    CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  };
  CUresult result = make();
  // The runtime gives a thread its context when the thread first needs it; the driver does not.
  if (result == CUDA_ERROR_INVALID_CONTEXT && bind_context()) result = make();
  if (result != CUDA_SUCCESS) fail(op, "error " + std::to_string(result));
  return map;
}

}  // namespace graft::cuda
