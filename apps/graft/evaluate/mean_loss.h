#pragma once

#include <cstdint>
#include <vector>

#include "apps/graft/data/dataset.h"
#include "apps/graft/model/llama.h"

namespace graft::app {

struct MeanLoss {
  double loss = 0.0;         ///< A token, over all that count.
  std::int64_t targets = 0;  ///< How many counted.

  double perplexity() const;
};

/// The mean loss of all targets in `samples`, each token counting the same: what validation in
/// training computes. At most `batch_size` samples at a time, fewer if they are long.
MeanLoss mean_loss(const Llama& model, const Adapter* adapter, const std::vector<Sample>& samples,
                   int batch_size, std::int32_t pad_token);

}  // namespace graft::app
