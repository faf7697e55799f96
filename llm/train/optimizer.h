#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "graft/export.h"

namespace graft::llm {

/// AdamW is Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101); Adam
/// (Kingma and Ba, arXiv:1412.6980) is the same without it. Both correct the moments' bias, as
/// torch.optim does. SGD is plain gradient descent, without momentum.
enum class OptimizerKind { kAdamW, kAdam, kSgd };

/// Reads "adamw", "adam" or "sgd". Throws UserError.
GRAFT_EXPORT OptimizerKind optimizer_named(std::string_view name);

/// Defaults of torch.optim.AdamW.
struct OptimizerOptions {
  OptimizerKind kind = OptimizerKind::kAdamW;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0.01;  ///< AdamW's; the others have none.
};

/// What an optimizer remembers between steps.
struct OptimizerState {
  std::vector<float> first_moment;  ///< As many as there are parameters; none for SGD.
  std::vector<float> second_moment;
  std::int64_t steps = 0;
};

/// Works on all parameters laid end to end: an adapter is small, and one loop over it costs less
/// than hundreds of array operations.
class GRAFT_EXPORT Optimizer {
 public:
  Optimizer(std::size_t num_parameters, const OptimizerOptions& options);

  /// One update of `parameters` with `gradients`, each multiplied by `gradient_scale` first.
  void step(std::span<float> parameters, std::span<const float> gradients, double learning_rate,
            double gradient_scale = 1.0);

  std::int64_t steps() const { return state_.steps; }
  const OptimizerState& state() const { return state_; }
  /// Bytes of the state's vectors.
  std::int64_t nbytes() const;
  /// Goes on from the state of the same kind of optimizer. Throws UserError if that one had another
  /// number of parameters.
  void restore(OptimizerState state);

 private:
  void adam_step(std::span<float> parameters, std::span<const float> gradients,
                 double learning_rate, double gradient_scale);

  OptimizerOptions options_;
  OptimizerState state_;
};

/// √Σ g², accumulated in double.
GRAFT_EXPORT double l2_norm(std::span<const float> gradients);

}  // namespace graft::llm
