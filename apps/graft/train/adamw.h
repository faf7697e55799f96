#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace graft::app {

/// Defaults of torch.optim.AdamW.
struct AdamWOptions {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0.01;
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

  std::int64_t steps() const { return steps_; }

 private:
  AdamWOptions options_;
  std::vector<float> first_moment_;
  std::vector<float> second_moment_;
  std::int64_t steps_ = 0;
};

/// √Σ g², accumulated in double.
double l2_norm(std::span<const float> gradients);

}  // namespace graft::app
