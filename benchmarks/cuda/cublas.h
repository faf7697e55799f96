#pragma once

#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include <string>

#include "graft/tensor_view.h"

namespace graft::bench {

/// Products of the vendor's library, which Graft's are measured against: in the tensors' type with
/// float32 sums, and float32 in true float32.
class Cublas {
 public:
  Cublas();
  ~Cublas();
  Cublas(const Cublas&) = delete;
  Cublas& operator=(const Cublas&) = delete;

  /// y (M, N) = alpha·x (M, K) · w (K, N) + beta·y. Rows of y are dense; x and w are row-major or
  /// transposed.
  void multiply(cudaStream_t stream, const ConstTensorView& x, const ConstTensorView& w,
                const TensorView& y, float alpha = 1.0f, float beta = 0.0f);

  std::string version() const;

 private:
  cublasHandle_t handle_ = nullptr;
  void* workspace_ = nullptr;
};

}  // namespace graft::bench
