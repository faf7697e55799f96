#include "benchmarks/cuda/cublas.h"

#include <stdexcept>

#include "benchmarks/cuda/device_memory.h"

namespace graft::bench {
namespace {

constexpr std::size_t kWorkspaceBytes = std::size_t{64} << 20;  // more than it asks for on Hopper

void must_be(cublasStatus_t status, const char* doing) {
  if (status != CUBLAS_STATUS_SUCCESS) {
    throw std::runtime_error(std::string(doing) + ": " + cublasGetStatusString(status));
  }
}

cudaDataType_t type_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return CUDA_R_16F;
    case DType::kBFloat16:
      return CUDA_R_16BF;
    default:
      return CUDA_R_32F;
  }
}

// cuBLAS is column-major: it is asked for yᵀ = wᵀ·xᵀ, where a row-major matrix counts as transposed
// already.
struct Operand {
  cublasOperation_t operation;
  int leading;
};

Operand operand_of(const ConstTensorView& matrix) {
  if (matrix.stride(1) == 1) return {CUBLAS_OP_N, static_cast<int>(matrix.stride(0))};
  return {CUBLAS_OP_T, static_cast<int>(matrix.stride(1))};
}

}  // namespace

Cublas::Cublas() {
  must_be(cublasCreate(&handle_), "cublasCreate");
  must(cudaMalloc(&workspace_, kWorkspaceBytes), "cudaMalloc");
}

Cublas::~Cublas() {
  cublasDestroy(handle_);
  cudaFree(workspace_);
}

void Cublas::multiply(cudaStream_t stream, const ConstTensorView& x, const ConstTensorView& w,
                      const TensorView& y, float alpha, float beta) {
  must_be(cublasSetStream(handle_, stream), "cublasSetStream");
  must_be(cublasSetWorkspace(handle_, workspace_, kWorkspaceBytes), "cublasSetWorkspace");
  const Operand left = operand_of(w), right = operand_of(x);
  must_be(cublasGemmEx(handle_, left.operation, right.operation, static_cast<int>(y.dim(1)),
                       static_cast<int>(y.dim(0)), static_cast<int>(x.dim(1)), &alpha, w.data(),
                       type_of(w.dtype()), left.leading, x.data(), type_of(x.dtype()),
                       right.leading, &beta, y.mutable_data(), type_of(y.dtype()),
                       static_cast<int>(y.stride(0)), CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
          "cublasGemmEx");
}

std::string Cublas::version() const {
  int version = 0;
  must_be(cublasGetVersion(handle_, &version), "cublasGetVersion");
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

}  // namespace graft::bench
