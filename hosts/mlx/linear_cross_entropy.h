#pragma once

#include <mlx/mlx.h>

#include "graft/export.h"
#include "graft/mlx/linear.h"

namespace graft::mlx {

/// losses[i] = logsumexp_v(x_i·W_vᵀ) − x_i·W_target(i)ᵀ: the head product and the loss together,
/// without the logits ever being stored whole; see graft/linear_cross_entropy.h.
///
/// x (..., in_features), W (vocabulary, in_features), targets (...) integers in [0, vocabulary), or
/// `ignore_index` for rows that take no part and have loss 0. The losses are float32, of the shape
/// of targets. When a gradient in x is asked for, it is computed in the same pass as the losses;
/// otherwise it costs nothing. A target outside the vocabulary is an error when the result is
/// evaluated. Throws std::invalid_argument if shapes do not fit.
GRAFT_EXPORT mx::array linear_cross_entropy(const mx::array& x, const Weight& w,
                                            const mx::array& targets, int ignore_index = -100,
                                            mx::StreamOrDevice s = {});

/// The same with a plain weight, packed anew each time. Its gradient is composed from MLX ops.
GRAFT_EXPORT mx::array linear_cross_entropy(const mx::array& x, const mx::array& w,
                                            const mx::array& targets, int ignore_index = -100,
                                            mx::StreamOrDevice s = {});

}  // namespace graft::mlx
