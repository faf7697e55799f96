#pragma once

#include <cstddef>
#include <cstdint>

#include "graft/context.h"
#include "graft/export.h"
#include "graft/supports.h"
#include "graft/tensor_view.h"
#include "graft/weight.h"

namespace graft {

/// The head product and the loss together: losses[i] = logsumexp_v(z[i, v]) − z[i, target[i]] with
/// z = x·Wᵀ. Logits exist for a chunk of rows at a time, never for all of them.
///
/// Rows whose target is `ignore_index` have loss 0 and gradient 0 and take no part in the product.
/// If `dx` is present, the same pass also writes d(losses[i])/dx[i, :], unscaled: the caller
/// multiplies each row by that row's cotangent (1 / count for a mean), so forward and backward
/// share one head product.
struct LinearCrossEntropy {
  ConstTensorView x;        ///< (M, in_features), rows dense, float32, bfloat16 or (GPUs) float16.
  Weight weight;            ///< (vocabulary, in_features); for dx, packed kForwardAndBackward.
  ConstTensorView targets;  ///< (M) int32 in [0, vocabulary) or `ignore_index`.
  std::int32_t ignore_index = -100;  ///< Target of the rows to leave out.
  TensorView losses;                 ///< (M) float32, overwritten.
  TensorView dx;                     ///< (M, in_features), dtype of x, optional, overwritten.
};

/// Whether such a call can run here, and if not, why.
GRAFT_EXPORT Support supports(const LinearCrossEntropy& params);

/// Bytes of scratch that such a call takes from a context of so many threads. Reads no tensor.
/// Throws Error for a call that is not supported.
GRAFT_EXPORT std::size_t scratch_bytes(const LinearCrossEntropy& params,
                                       int threads = num_threads());

/// Throws Error, also for a target outside the vocabulary; on an error no output is touched. On
/// CUDA, where a call does not wait for the device to read them, the loss and the gradient of such
/// a row are NaN instead.
GRAFT_EXPORT void linear_cross_entropy(Context& context, const LinearCrossEntropy& params);

}  // namespace graft
