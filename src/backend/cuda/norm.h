#pragma once

#include <cstddef>

#include "graft/context.h"
#include "graft/tensor_view.h"

// What RMS norm and layer norm are both made of:
//
//     s = x + residual        x̂ = (s − mean) · rstd        y = x̂ ∘ weight + bias
//
// where RMS norm's mean is 0, whatever s is.

namespace graft::cuda {

struct NormForward {
  const char* op;
  bool centered;  ///< The mean is taken out.
  ConstTensorView x, residual, weight, bias;
  float eps;
  TensorView y, sum, mean, rstd;
};

/// ds = rstd · (g − mean(g) − x̂ · mean(g ∘ x̂)) + dsum with g = dy ∘ weight (without mean(g) if not
/// centered), dweight = Σ_rows dy ∘ x̂, dbias = Σ_rows dy.
struct NormBackward {
  const char* op;
  bool centered;
  ConstTensorView dy, s, weight;
  float eps;
  ConstTensorView mean, rstd, dsum;  ///< rstd absent: both are computed again.
  TensorView ds, dweight, dbias;
};

/// @{
/// Any tensor may be absent but x, y, dy and s. Shapes have been checked.
void norm_forward(Context& context, const NormForward& p);
void norm_backward(Context& context, const NormBackward& p);
/// @}

/// Bytes of workspace on the device.
std::size_t scratch_bytes(const NormBackward& p);

}  // namespace graft::cuda
