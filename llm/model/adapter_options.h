#pragma once

#include <vector>

#include "graft/llm/model/projection.h"

namespace graft::llm {

/// What an adapter is, apart from its weights.
struct AdapterOptions {
  int rank = 8;                  ///< Columns of A, rows of B; 1 to kMaxLoraRank.
  float alpha = 16.0f;           ///< Above 0.
  float dropout = 0.0f;          ///< On the adapter's input while it trains; below 1.
  std::vector<int> layers = {};  ///< Layers with an adapter, ascending; empty is all.
  /// The matrices of such a layer that have one.
  std::vector<Projection> targets{kAllProjections.begin(), kAllProjections.end()};

  /// What A·B is multiplied by.
  float scaling() const { return alpha / static_cast<float>(rank); }
};

}  // namespace graft::llm
