#include "graft/llm/evaluate/mean_loss.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>

#include "graft/llm/user_error.h"
#include "mlx/ops.h"

namespace graft::llm {
namespace {

mx::array array_of(const std::vector<std::int32_t>& values, const Batch& batch) {
  return mx::array(values.data(),
                   {static_cast<int>(batch.batch_size), static_cast<int>(batch.length)}, mx::int32);
}

class Mean {
 public:
  void add(const Llama& model, const ModelAdapter* adapter, const Batch& batch) {
    sum_ += static_cast<double>(loss_sum(model, adapter, batch).item<float>());
    targets_ += batch.num_targets;
  }

  MeanLoss value() const {
    return {sum_ / static_cast<double>(std::max<std::int64_t>(1, targets_)), targets_};
  }

 private:
  double sum_ = 0.0;
  std::int64_t targets_ = 0;
};

}  // namespace

mx::array loss_sum(const Llama& model, const ModelAdapter* adapter, const Batch& batch,
                   Activations activations) {
  const auto positions = static_cast<std::size_t>(batch.batch_size * batch.length);
  if (batch.tokens.size() != positions || batch.targets.size() != positions) {
    throw UserError(
        fmt::format("batch of {} rows of {}: expected as many tokens and targets, got "
                    "{} and {}",
                    batch.batch_size, batch.length, batch.tokens.size(), batch.targets.size()));
  }
  return model.loss_sum(array_of(batch.tokens, batch), array_of(batch.targets, batch), adapter,
                        activations);
}

double MeanLoss::perplexity() const { return std::exp(loss); }

std::optional<MeanLoss> mean_loss(const Llama& model, const ModelAdapter* adapter,
                                  std::span<const Batch> batches,
                                  const std::function<bool()>& stop) {
  Mean mean;
  for (const Batch& batch : batches) {
    if (stop && stop()) return std::nullopt;
    mean.add(model, adapter, batch);
  }
  return mean.value();
}

MeanLoss mean_loss(const Llama& model, const ModelAdapter* adapter,
                   const std::vector<Sample>& samples, int batch_size, std::int32_t pad_token) {
  std::int64_t longest = 1;
  for (const Sample& sample : samples) {
    longest = std::max<std::int64_t>(longest, std::ssize(sample.tokens));
  }
  const std::int64_t rows = std::clamp<std::int64_t>(kTokensAtATime / longest, 1, batch_size);
  Batches batches(samples, {.batch_size = rows, .pad_token = pad_token});
  Mean mean;
  for (std::int64_t step = 0; step < batches.per_epoch(); ++step) {
    mean.add(model, adapter, batches.at(step));
  }
  return mean.value();
}

}  // namespace graft::llm
