#include "apps/graft/evaluate/mean_loss.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "apps/graft/data/batches.h"
#include "mlx/ops.h"

namespace graft::app {
namespace {

// What a batch holds at most, so that activations stay within a few hundred megabytes.
constexpr std::int64_t kTokensAtATime = 8192;

mx::array array_of(const std::vector<std::int32_t>& values, const Batch& batch) {
  return mx::array(values.data(),
                   {static_cast<int>(batch.batch_size), static_cast<int>(batch.length)}, mx::int32);
}

}  // namespace

double MeanLoss::perplexity() const { return std::exp(loss); }

MeanLoss mean_loss(const Llama& model, const Adapter* adapter, const std::vector<Sample>& samples,
                   int batch_size, std::int32_t pad_token) {
  std::int64_t longest = 1;
  for (const Sample& sample : samples) longest = std::max(longest, std::ssize(sample.tokens));
  const std::int64_t rows = std::clamp<std::int64_t>(kTokensAtATime / longest, 1, batch_size);
  Batches batches(samples, {.batch_size = rows, .pad_token = pad_token});

  double sum = 0.0;
  MeanLoss mean;
  for (std::int64_t step = 0; step < batches.per_epoch(); ++step) {
    const Batch batch = batches.at(step);
    mx::array loss =
        model.loss_sum(array_of(batch.tokens, batch), array_of(batch.targets, batch), adapter);
    sum += static_cast<double>(loss.item<float>());
    mean.targets += batch.num_targets;
  }
  mean.loss = sum / static_cast<double>(std::max<std::int64_t>(1, mean.targets));
  return mean;
}

}  // namespace graft::app
