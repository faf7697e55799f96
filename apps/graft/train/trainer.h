#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "apps/graft/data/batches.h"
#include "apps/graft/model/adapter_layout.h"
#include "apps/graft/model/llama.h"
#include "apps/graft/train/adamw.h"
#include "apps/graft/train/lr_schedule.h"
#include "mlx/array.h"

namespace graft::app {

struct TrainOptions {
  LrSchedule schedule;
  AdamWOptions adamw;
  double max_grad_norm = 1.0;  ///< Gradients longer than this are shortened to it; 0 is off.
  std::uint64_t seed = 0;      ///< Of the dropout masks.
};

struct StepResult {
  double loss = 0.0;  ///< Mean over the batch's targets, before the update.
  double grad_norm = 0.0;
  double learning_rate = 0.0;
};

/// Trains one adapter: the parameters, their optimizer and the count of iterations.
class Trainer {
 public:
  /// `model` and `layout` must outlive the trainer.
  Trainer(const Llama& model, const AdapterLayout& layout, const std::vector<LoraPair>& initial,
          const TrainOptions& options);

  /// One iteration. Throws UserError if the loss or a gradient is not finite; the parameters are
  /// then those of before.
  StepResult step(const Batch& batch);

  /// Mean loss over all targets of `batches`, without dropout.
  double evaluate(std::span<const Batch> batches) const;

  int iteration() const { return iteration_; }  ///< Iterations done.
  std::vector<LoraPair> pairs() const;          ///< The parameters as they are now.

 private:
  std::vector<mx::array> parameter_arrays() const;

  const Llama& model_;
  const AdapterLayout& layout_;
  TrainOptions options_;
  std::vector<mx::Shape> shapes_;  // a, b of each module in turn
  std::vector<float> parameters_;  // all of them, end to end
  std::vector<float> gradients_;
  AdamW optimizer_;
  int iteration_ = 0;
};

}  // namespace graft::app
