#include "apps/graft/train/adamw.h"

#include <cmath>
#include <cstddef>
#include <numeric>

namespace graft::app {

AdamW::AdamW(std::size_t num_parameters, const AdamWOptions& options)
    : options_(options),
      state_{std::vector<float>(num_parameters), std::vector<float>(num_parameters), 0} {}

void AdamW::step(std::span<float> parameters, std::span<const float> gradients,
                 double learning_rate, double gradient_scale) {
  ++state_.steps;
  const auto t = static_cast<double>(state_.steps);
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

}  // namespace graft::app
