#include "graft/llm/train/trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <utility>

#include "graft/llm/evaluate/mean_loss.h"
#include "graft/llm/user_error.h"
#include "mlx/ops.h"
#include "mlx/transforms.h"

namespace graft::llm {
namespace {

std::size_t size_of(const mx::Shape& shape) {
  return static_cast<std::size_t>(shape[0]) * static_cast<std::size_t>(shape[1]);
}

std::vector<LoraPair> pairs_from(const std::vector<mx::array>& parameters) {
  std::vector<LoraPair> pairs;
  pairs.reserve(parameters.size() / 2);
  for (std::size_t i = 0; i + 1 < parameters.size(); i += 2) {
    pairs.push_back({parameters[i], parameters[i + 1]});
  }
  return pairs;
}

// One call of a module takes M·in_features / 8 counters, far below 2³²: this far apart, no
// two modules and no two iterations share a mask.
constexpr int kCallBits = 32;

DropoutCounters first_dropout(std::size_t num_modules, std::uint64_t seed) {
  DropoutCounters dropout{seed, {}};
  for (std::uint64_t module = 0; module < num_modules; ++module) {
    dropout.offsets.push_back((num_modules + module) << kCallBits);
  }
  return dropout;
}

bool all_finite(std::span<const float> values) { return std::isfinite(l2_norm(values)); }

}  // namespace

NotFinite::NotFinite(int iteration, const std::string& what)
    : UserError(fmt::format("iteration {}: {}; try a lower --learning-rate, a longer --warmup or "
                            "--max-grad-norm 1",
                            iteration, what)) {}

Trainer::Trainer(const Llama& model, const AdapterLayout& layout,
                 const std::vector<LoraPair>& initial, const TrainOptions& options)
    : model_(model),
      layout_(layout),
      options_(options),
      gradients_(static_cast<std::size_t>(layout.num_parameters())),
      optimizer_(static_cast<std::size_t>(layout.num_parameters()), options.optimizer),
      dropout_(first_dropout(layout.modules().size(), options.seed)) {
  set_parameters(initial);
}

void Trainer::set_parameters(const std::vector<LoraPair>& pairs) {
  layout_.check(pairs);
  shapes_.clear();
  parameters_.clear();
  parameters_.reserve(static_cast<std::size_t>(layout_.num_parameters()));
  for (const LoraPair& pair : pairs) {
    for (const mx::array& matrix : {pair.a, pair.b}) {
      const mx::array dense = mx::contiguous(mx::astype(matrix, mx::float32));
      shapes_.push_back(dense.shape());
      mx::eval(dense);
      parameters_.insert(parameters_.end(), dense.data<float>(),
                         dense.data<float>() + dense.size());
    }
  }
}

TrainerState Trainer::state() const {
  PendingGradients pending{{}, targets_, iterations_};
  if (iterations_ > 0) pending.mean = gradients_;
  return {iteration_, pairs(), optimizer_.state(), std::move(pending), dropout_};
}

std::int64_t Trainer::state_bytes() const {
  const auto parameters = static_cast<std::int64_t>(parameters_.size() * sizeof(float));
  const std::int64_t pending = options_.accumulation_steps > 1 ? parameters : 0;
  return parameters + optimizer_.nbytes() + pending;
}

void Trainer::restore(TrainerState state) {
  if (state.dropout.offsets.size() != dropout_.offsets.size() ||
      (state.pending.iterations > 0 && state.pending.mean.size() != gradients_.size())) {
    throw UserError("the saved gradients or dropout are those of another adapter");
  }
  optimizer_.restore(std::move(state.optimizer));
  set_parameters(state.pairs);
  clear_gradients();
  if (state.pending.iterations > 0) {
    gradients_ = std::move(state.pending.mean);
    targets_ = state.pending.targets;
    iterations_ = state.pending.iterations;
  }
  dropout_ = std::move(state.dropout);
  iteration_ = state.iteration;
}

std::vector<mx::array> Trainer::parameter_arrays() const {
  std::vector<mx::array> arrays;
  arrays.reserve(shapes_.size());
  const float* next = parameters_.data();
  for (const mx::Shape& shape : shapes_) {
    arrays.push_back(mx::array(next, shape, mx::float32));
    next += size_of(shape);
  }
  return arrays;
}

std::vector<LoraPair> Trainer::pairs() const { return pairs_from(parameter_arrays()); }

StepResult Trainer::step(const Batch& batch) {
  ++iteration_;
  StepResult result;
  result.loss = add_gradients(batch);
  result.learning_rate = options_.schedule.rate(iteration_);
  if (iterations_ == options_.accumulation_steps) update(result);
  for (std::uint64_t& offset : dropout_.offsets) {
    offset += static_cast<std::uint64_t>(dropout_.offsets.size()) << kCallBits;
  }
  return result;
}

std::vector<mx::array> Trainer::loss_and_gradients(const Batch& batch,
                                                   Activations activations) const {
  const auto loss_of = [&](const std::vector<mx::array>& parameters) {
    ModelAdapter adapter{&layout_, pairs_from(parameters), std::nullopt, {}};
    if (layout_.options().dropout > 0) {
      adapter.dropout_seed = mx::array(dropout_.seed, mx::uint64);
      for (const std::uint64_t offset : dropout_.offsets) {
        adapter.dropout_offsets.push_back(mx::array(offset, mx::uint64));
      }
    }
    const auto count = static_cast<float>(std::max<std::int64_t>(1, batch.num_targets));
    return std::vector<mx::array>{
        mx::multiply(loss_sum(model_, &adapter, batch, activations), mx::array(1.0f / count))};
  };
  std::vector<int> all(shapes_.size());
  std::iota(all.begin(), all.end(), 0);
  auto [results, gradients] = mx::value_and_grad(loss_of, all)(parameter_arrays());
  for (const mx::array& gradient : gradients) results.push_back(mx::contiguous(gradient));
  return results;
}

double Trainer::add_gradients(const Batch& batch) {
  std::vector<mx::array> results = loss_and_gradients(batch, options_.activations);
  mx::eval(results);

  const auto loss = static_cast<double>(results[0].item<float>());
  if (!std::isfinite(loss)) throw NotFinite(iteration_, fmt::format("the loss is {}", loss));

  // Each target counts the same. The first batch's gradients come through as they are.
  targets_ += batch.num_targets;
  ++iterations_;
  const float share = static_cast<float>(batch.num_targets) /
                      static_cast<float>(std::max<std::int64_t>(1, targets_));
  float* next = gradients_.data();
  for (std::size_t i = 1; i < results.size(); ++i) {
    const float* gradient = results[i].data<float>();
    next = std::transform(gradient, gradient + results[i].size(), next, next,
                          [&](float g, float mean) { return mean + share * (g - mean); });
  }
  if (const double norm = l2_norm(gradients_); !std::isfinite(norm)) {
    throw NotFinite(iteration_, fmt::format("the norm of the gradients is {}", norm));
  }
  return loss;
}

void Trainer::update(StepResult& result) {
  result.updated = true;
  result.grad_norm = l2_norm(gradients_);
  const bool shorten = options_.max_grad_norm > 0 && result.grad_norm > options_.max_grad_norm;
  optimizer_.step(parameters_, gradients_, result.learning_rate,
                  shorten ? options_.max_grad_norm / result.grad_norm : 1.0);
  if (!all_finite(parameters_)) throw NotFinite(iteration_, "the update is not finite");
  clear_gradients();
}

void Trainer::clear_gradients() {
  std::ranges::fill(gradients_, 0.0f);
  targets_ = 0;
  iterations_ = 0;
}

std::optional<double> Trainer::evaluate(std::span<const Batch> batches,
                                        const std::function<bool()>& stop) const {
  const ModelAdapter adapter{&layout_, pairs(), std::nullopt, {}};
  const std::optional<MeanLoss> mean = mean_loss(model_, &adapter, batches, stop);
  if (!mean) return std::nullopt;
  if (!std::isfinite(mean->loss)) {
    throw NotFinite(iteration_, fmt::format("the validation loss is {}", mean->loss));
  }
  return mean->loss;
}

}  // namespace graft::llm
