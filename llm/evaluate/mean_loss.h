#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "graft/export.h"
#include "graft/llm/data/batches.h"
#include "graft/llm/data/dataset.h"
#include "graft/llm/model/llama.h"

namespace graft::llm {

/// What is computed at a time at most, so that activations stay within a few hundred megabytes.
inline constexpr std::int64_t kTokensAtATime = 8192;

/// Sum of the losses of all targets of a batch, as Llama::loss_sum.
GRAFT_EXPORT mx::array loss_sum(const Llama& model, const ModelAdapter* adapter, const Batch& batch,
                                Activations activations = Activations::kKept);

/// A model's cross-entropy on data, in nats.
struct GRAFT_EXPORT MeanLoss {
  double loss = 0.0;         ///< A token, over all that count.
  std::int64_t targets = 0;  ///< How many counted.

  double perplexity() const;
};

/// The mean loss of all targets in `batches`, each token counting the same; nothing if `stop` said
/// so between two of them.
GRAFT_EXPORT std::optional<MeanLoss> mean_loss(const Llama& model, const ModelAdapter* adapter,
                                               std::span<const Batch> batches,
                                               const std::function<bool()>& stop = {});

/// The same of all targets in `samples`: at most `batch_size` at a time, fewer if they are long.
GRAFT_EXPORT MeanLoss mean_loss(const Llama& model, const ModelAdapter* adapter,
                                const std::vector<Sample>& samples, int batch_size,
                                std::int32_t pad_token);

}  // namespace graft::llm
