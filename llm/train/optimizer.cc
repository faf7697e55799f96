#include "graft/llm/train/optimizer.h"

#include <fmt/format.h>

#include <cmath>
#include <cstddef>
#include <numeric>
#include <utility>

#include "graft/llm/user_error.h"

namespace graft::llm {
namespace {

void descend(std::span<float> parameters, std::span<const float> gradients, double step_size) {
  const auto size = static_cast<float>(step_size);
  for (std::size_t i = 0; i < parameters.size(); ++i) parameters[i] -= size * gradients[i];
}

}  // namespace

OptimizerKind optimizer_named(std::string_view name) {
  if (name == "adamw") return OptimizerKind::kAdamW;
  if (name == "adam") return OptimizerKind::kAdam;
  if (name == "sgd") return OptimizerKind::kSgd;
  throw UserError(fmt::format("there is no optimizer '{}'; expected adamw, adam or sgd", name));
}

Optimizer::Optimizer(std::size_t num_parameters, const OptimizerOptions& options)
    : options_(options) {
  if (options.kind == OptimizerKind::kSgd) return;
  state_.first_moment.resize(num_parameters);
  state_.second_moment.resize(num_parameters);
}

void Optimizer::restore(OptimizerState state) {
  if (state.first_moment.size() != state_.first_moment.size() ||
      state.second_moment.size() != state_.second_moment.size()) {
    throw UserError("the saved optimizer is that of another adapter");
  }
  state_ = std::move(state);
}

void Optimizer::step(std::span<float> parameters, std::span<const float> gradients,
                     double learning_rate, double gradient_scale) {
  ++state_.steps;
  if (options_.kind == OptimizerKind::kSgd) {
    descend(parameters, gradients, learning_rate * gradient_scale);
  } else {
    adam_step(parameters, gradients, learning_rate, gradient_scale);
  }
}

void Optimizer::adam_step(std::span<float> parameters, std::span<const float> gradients,
                          double learning_rate, double gradient_scale) {
  const auto t = static_cast<double>(state_.steps);
  const double decay = options_.kind == OptimizerKind::kAdamW ? options_.weight_decay : 0.0;
  // p ← p·(1 − η·λ) − η·m̂ / (√v̂ + ε), with the corrections of m̂ and v̂ moved into the constants.
  const double correction1 = 1.0 - std::pow(options_.beta1, t);
  const double correction2 = 1.0 - std::pow(options_.beta2, t);
  const auto beta1 = static_cast<float>(options_.beta1);
  const auto beta2 = static_cast<float>(options_.beta2);
  const auto rest1 = static_cast<float>(1.0 - options_.beta1);
  const auto rest2 = static_cast<float>(1.0 - options_.beta2);
  const auto keep = static_cast<float>(1.0 - learning_rate * decay);
  const auto step_size = static_cast<float>(learning_rate / correction1);
  const auto root = static_cast<float>(1.0 / std::sqrt(correction2));
  const auto epsilon = static_cast<float>(options_.epsilon);
  const auto scale = static_cast<float>(gradient_scale);

  // No array overlaps another: said here, so that the loop vectorizes.
  float* __restrict const p = parameters.data();
  const float* __restrict const gradient = gradients.data();
  float* __restrict const first = state_.first_moment.data();
  float* __restrict const second = state_.second_moment.data();
  const std::size_t count = parameters.size();
  for (std::size_t i = 0; i < count; ++i) {
    const float g = gradient[i] * scale;
    first[i] = beta1 * first[i] + rest1 * g;
    second[i] = beta2 * second[i] + rest2 * g * g;
    const float denominator = std::sqrt(second[i]) * root + epsilon;
    p[i] = p[i] * keep - step_size * first[i] / denominator;
  }
}

std::int64_t Optimizer::nbytes() const {
  const std::size_t numbers = state_.first_moment.size() + state_.second_moment.size();
  return static_cast<std::int64_t>(numbers * sizeof(float));
}

double l2_norm(std::span<const float> gradients) {
  // Sums side by side: one alone would wait for each of its additions.
  constexpr std::size_t kSums = 8;
  double sums[kSums] = {};
  std::size_t i = 0;
  for (; i + kSums <= gradients.size(); i += kSums) {
    for (std::size_t j = 0; j < kSums; ++j) {
      sums[j] += static_cast<double>(gradients[i + j]) * gradients[i + j];
    }
  }
  for (; i < gradients.size(); ++i) sums[0] += static_cast<double>(gradients[i]) * gradients[i];
  return std::sqrt(std::accumulate(sums, sums + kSums, 0.0));
}

}  // namespace graft::llm
