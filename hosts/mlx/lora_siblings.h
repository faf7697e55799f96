#pragma once

#include <mlx/mlx.h>

#include <optional>
#include <string>
#include <vector>

#include "graft/export.h"
#include "graft/mlx/fusion.h"
#include "graft/mlx/lora.h"

namespace graft::mlx {

/// One of several layers that read the same x, as q, k and v do, or gate and up.
struct LoraSibling {
  Weight weight;                       ///< (out_features, in_features), frozen.
  std::optional<mx::array> bias = {};  ///< (out_features).
  std::optional<mx::array> a = {};     ///< (in_features, rank); none with `b` for no adapter.
  std::optional<mx::array> b = {};     ///< (rank, out_features).
  float scaling = 1.0f;                ///< Multiplies A·B.
  DropoutState dropout = {};           ///< On the adapter's input.
  std::string module = ModuleScope::current();  ///< Whose runs `fusion_report` counts.
};

/// What lora_linear gives for each of the layers, or linear for one without an adapter: one y for
/// each, (..., out_features) in x's dtype.
///
/// Where `graft::supports` takes all of them together, x is read once for all, and backward sums
/// the gradient in x in one pass; else they run one by one, each as its own call would.
/// Differentiable in x, a and b, any number of times. Throws std::invalid_argument if shapes do not
/// fit.
GRAFT_EXPORT std::vector<mx::array> lora_siblings(const mx::array& x,
                                                  const std::vector<LoraSibling>& layers,
                                                  mx::StreamOrDevice s = {});

}  // namespace graft::mlx
