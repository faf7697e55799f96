#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "graft/tensor_view.h"

namespace graft::bench {

/// What a line of the table computes.
enum class Work : std::uint8_t {
  kDelta,            ///< y = s·(x·A)·B.
  kDeltaBackward,    ///< dx, dA and dB of it.
  kForward,          ///< y = x·Wᵀ + s·(drop(x)·A)·B.
  kBackward,         ///< dx, dA and dB of it.
  kForwardBackward,  ///< Both.
  kSiblings,         ///< q, k and v: three layers forward from one x, N of the first and twice N/4.
  kSoftmax,          ///< Forward; the same with backward, and so on for the norms.
  kSoftmaxBoth,
  kRmsNorm,
  kRmsNormBoth,
  kLayerNorm,
  kLayerNormBoth,
};

const char* name_of(Work work);
bool is_rows(Work work);
bool is_delta(Work work);

struct CudaCase {
  Work work;
  std::int64_t m, k, n;  ///< x (m, k), W (n, k); of a row operation (m, k) alone.
  std::int64_t rank = 16;
  DType dtype = DType::kBFloat16;    ///< Of x, W and y.
  DType adapter = DType::kBFloat16;  ///< Of A and B.
  float dropout = 0.0f;
};

/// "forward 4096x4096>4096 r16 bf16 float32 dropout0.1".
std::string label_of(const CudaCase& item);

/// Every line, in the order of the table.
std::vector<CudaCase> all_cuda_cases();

}  // namespace graft::bench
