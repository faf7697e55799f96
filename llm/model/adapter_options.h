#pragma once

#include <vector>

#include "graft/llm/model/projection.h"

namespace graft::llm {

/// What an adapter is, apart from its weights.
struct AdapterOptions {
  int rank = 8;
  float alpha = 16.0f;
  float dropout = 0.0f;
  std::vector<int> layers = {};  ///< Layers with an adapter, ascending; empty is all.
  std::vector<Projection> targets{kAllProjections.begin(), kAllProjections.end()};

  float scaling() const { return alpha / static_cast<float>(rank); }
};

}  // namespace graft::llm
