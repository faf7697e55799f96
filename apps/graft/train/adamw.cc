#include "apps/graft/train/adamw.h"

#include <cmath>

namespace graft::app {

AdamW::AdamW(std::size_t num_parameters, const AdamWOptions& options)
    : options_(options), first_moment_(num_parameters), second_moment_(num_parameters) {}

void AdamW::step(std::span<float> parameters, std::span<const float> gradients,
                 double learning_rate, double gradient_scale) {
  ++steps_;
  const auto t = static_cast<double>(steps_);
  // p ← p·(1 − η·λ) − η·m̂ / (√v̂ + ε), with the corrections of m̂ and v̂ moved into the constants.
  const double correction1 = 1.0 - std::pow(options_.beta1, t);
  const double correction2 = 1.0 - std::pow(options_.beta2, t);
  const auto beta1 = static_cast<float>(options_.beta1);
  const auto beta2 = static_cast<float>(options_.beta2);
  const auto rest1 = static_cast<float>(1.0 - options_.beta1);
  const auto rest2 = static_cast<float>(1.0 - options_.beta2);
  const auto keep = static_cast<float>(1.0 - learning_rate * options_.weight_decay);
  const auto step_size = static_cast<float>(learning_rate / correction1);
  const auto root = static_cast<float>(1.0 / std::sqrt(correction2));
  const auto epsilon = static_cast<float>(options_.epsilon);
  const auto scale = static_cast<float>(gradient_scale);

  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const float g = gradients[i] * scale;
    first_moment_[i] = beta1 * first_moment_[i] + rest1 * g;
    second_moment_[i] = beta2 * second_moment_[i] + rest2 * g * g;
    const float denominator = std::sqrt(second_moment_[i]) * root + epsilon;
    parameters[i] = parameters[i] * keep - step_size * first_moment_[i] / denominator;
  }
}

double l2_norm(std::span<const float> gradients) {
  double sum = 0.0;
  for (const float g : gradients) sum += static_cast<double>(g) * g;
  return std::sqrt(sum);
}

}  // namespace graft::app
