#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace graft::app {

/// Defaults of torch.optim.AdamW.
struct AdamWOptions {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0.01;
};

/// What AdamW remembers between steps.
struct AdamWState {
  std::vector<float> first_moment;
  std::vector<float> second_moment;
  std::int64_t steps = 0;
};

/// Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101) and bias correction,
/// over all parameters laid end to end: an adapter is small, and one loop over it costs less than
/// hundreds of array operations.
class AdamW {
 public:
  AdamW(std::size_t num_parameters, const AdamWOptions& options);

  /// One update of `parameters` with `gradients`, each multiplied by `gradient_scale` first.
  void step(std::span<float> parameters, std::span<const float> gradients, double learning_rate,
            double gradient_scale = 1.0);

  std::int64_t steps() const { return state_.steps; }
  const AdamWState& state() const { return state_; }
  /// Goes on from `state`, of as many parameters.
  void restore(AdamWState state) { state_ = std::move(state); }

 private:
  AdamWOptions options_;
  AdamWState state_;
};

/// √Σ g², accumulated in double.
double l2_norm(std::span<const float> gradients);

}  // namespace graft::app
