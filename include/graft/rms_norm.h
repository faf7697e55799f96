#pragma once

#include <cstddef>

#include "graft/context.h"
#include "graft/export.h"
#include "graft/supports.h"
#include "graft/tensor_view.h"

namespace graft {

/// y = s · rstd ∘ weight with rstd = 1 / √(mean(s²) + eps) a row, and s = x, or x + residual
/// (Zhang and Sennrich, arXiv:1910.07467).
///
/// All matrices are (M, features), float32, float16 or bfloat16, all of one dtype, rows dense,
/// computed in float32. The CPU has kernels for float32 and bfloat16, CUDA for all three. y and sum
/// may each be x or residual themselves; no other overlap.
struct RmsNormForward {
  ConstTensorView x;         ///< (M, features).
  ConstTensorView residual;  ///< Optional.
  ConstTensorView weight;    ///< (features), of one of these dtypes, maybe another, dense.
  float eps = 1e-5f;         ///< Keeps rstd finite on a row of zeros.
  TensorView y;              ///< Overwritten.
  TensorView sum;            ///< s, rounded to its dtype; with residual and only then. Overwritten.
  TensorView rstd;           ///< (M) float32, dense, optional, overwritten.
};

/// ds = rstd · (dy ∘ weight − s · rstd² · mean(dy ∘ weight ∘ s)) + dsum, and
/// dweight = Σ_rows dy ∘ s · rstd. Each output is optional and overwritten.
///
/// ds is the gradient of x and of residual alike.
struct RmsNormBackward {
  ConstTensorView dy;      ///< (M, features).
  ConstTensorView s;       ///< x, or `sum` as forward wrote it.
  ConstTensorView weight;  ///< As given to forward.
  float eps = 1e-5f;       ///< As given to forward.
  ConstTensorView rstd;    ///< (M) float32 as forward wrote it; computed again from s if absent.
  ConstTensorView dsum;    ///< Optional: what reaches s past the norm, along the residual stream.
  TensorView ds;           ///< May be dy, s or dsum themselves; no other overlap.
  TensorView dweight;      ///< (features) float32, dense.
};

/// @{
/// Whether such a call can run here, and if not, why.
GRAFT_EXPORT Support supports(const RmsNormForward& params);
GRAFT_EXPORT Support supports(const RmsNormBackward& params);
/// @}

/// @{
/// Bytes of scratch that such a call takes from a context of so many threads. Reads no tensor. On
/// CUDA as for layer norm (graft/layer_norm.h). Throws Error for a call that is not supported.
GRAFT_EXPORT std::size_t scratch_bytes(const RmsNormForward& params, int threads = num_threads());
GRAFT_EXPORT std::size_t scratch_bytes(const RmsNormBackward& params, int threads = num_threads());
/// @}

/// @{
/// Each throws Error; on an error no output is touched. Results do not depend on the number of
/// threads.
GRAFT_EXPORT void rms_norm_forward(Context& context, const RmsNormForward& params);
GRAFT_EXPORT void rms_norm_backward(Context& context, const RmsNormBackward& params);
/// @}

}  // namespace graft
