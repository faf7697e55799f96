#pragma once

#include <cstddef>

#include "graft/context.h"
#include "graft/export.h"
#include "graft/supports.h"
#include "graft/tensor_view.h"

namespace graft {

/// y = x̂ ∘ weight + bias with x̂ = (x − mean) · rstd and rstd = 1 / √(mean((x − mean)²) + eps) a row
/// (Ba, Kiros and Hinton, arXiv:1607.06450).
///
/// All matrices are (M, features), float32, float16 or bfloat16, all of one dtype, rows dense,
/// computed in float32. The CPU has kernels for float32 and bfloat16, CUDA for all three (weight
/// and bias may differ from the matrices), Metal too (metal::plan in graft/metal.h).
struct LayerNormForward {
  ConstTensorView x;       ///< (M, features).
  ConstTensorView weight;  ///< (features), float32, float16 or bfloat16, dense, optional: 1.
  ConstTensorView bias;    ///< (features), float32, float16 or bfloat16, dense, optional: 0.
  float eps = 1e-5f;       ///< Keeps rstd finite on a row of equal values.
  TensorView y;            ///< Overwritten; may be x itself, no other overlap.
  TensorView mean;         ///< (M) float32, dense, optional, overwritten.
  TensorView rstd;         ///< (M) float32, dense, optional, overwritten.
};

/// dx = rstd · (g − mean(g) − x̂ · mean(g ∘ x̂)) with g = dy ∘ weight, dweight = Σ_rows dy ∘ x̂ and
/// dbias = Σ_rows dy. Each output is optional and overwritten.
struct LayerNormBackward {
  ConstTensorView dy;      ///< (M, features).
  ConstTensorView x;       ///< As given to forward.
  ConstTensorView weight;  ///< As given to forward.
  float eps = 1e-5f;       ///< As given to forward.
  ConstTensorView mean;    ///< (M) float32 as forward wrote it; computed again from x if absent.
  ConstTensorView rstd;    ///< Likewise; together with mean and only then.
  TensorView dx;           ///< May be dy or x themselves; no other overlap.
  TensorView dweight;      ///< (features) float32, dense.
  TensorView dbias;        ///< (features) float32, dense.
};

/// @{
/// Whether such a call can run here, and if not, why.
GRAFT_EXPORT Support supports(const LayerNormForward& params);
GRAFT_EXPORT Support supports(const LayerNormBackward& params);
/// @}

/// @{
/// Bytes of scratch that such a call takes from a context of so many threads. Reads no tensor. On
/// CUDA backward takes 8 bytes a column for each multiprocessor if dweight or dbias is wanted, some
/// 9 MB, and 8 bytes a row where rows can't be moved in packs and rstd is absent. Throws Error
/// for a call that is not supported.
GRAFT_EXPORT std::size_t scratch_bytes(const LayerNormForward& params, int threads = num_threads());
GRAFT_EXPORT std::size_t scratch_bytes(const LayerNormBackward& params,
                                       int threads = num_threads());
/// @}

/// @{
/// Each throws Error; on an error no output is touched. Results do not depend on the number of
/// threads.
GRAFT_EXPORT void layer_norm_forward(Context& context, const LayerNormForward& params);
GRAFT_EXPORT void layer_norm_backward(Context& context, const LayerNormBackward& params);
/// @}

}  // namespace graft
