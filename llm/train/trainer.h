#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "graft/export.h"
#include "graft/llm/data/batches.h"
#include "graft/llm/model/adapter_layout.h"
#include "graft/llm/model/llama.h"
#include "graft/llm/train/lr_schedule.h"
#include "graft/llm/train/optimizer.h"
#include "graft/llm/user_error.h"
#include "mlx/array.h"

namespace graft::llm {

/// How an adapter is trained.
struct TrainOptions {
  LrSchedule schedule;  ///< Has to have a peak: the default trains nothing.
  OptimizerOptions optimizer = {};
  int accumulation_steps = 1;  ///< Iterations an update.
  double max_grad_norm = 1.0;  ///< Gradients longer than this are shortened to it; 0 is off.
  std::uint64_t seed = 0;      ///< Of the dropout masks.
  Activations activations = Activations::kKept;
};

/// Gradients of the iterations since the last update, in the order of the parameters.
struct PendingGradients {
  std::vector<float> mean;   ///< Over all their targets; empty if there are none.
  std::int64_t targets = 0;  ///< How many those are.
  int iterations = 0;
};

/// What an iteration did.
struct StepResult {
  double loss = 0.0;  ///< Mean over the batch's targets, before the update.
  double learning_rate = 0.0;
  bool updated = false;    ///< Or its gradients wait for more.
  double grad_norm = 0.0;  ///< Of the update, before it was shortened.
};

/// Where the masks of the next iteration begin: Philox's key, and one counter a module.
struct DropoutCounters {
  std::uint64_t seed = 0;
  std::vector<std::uint64_t> offsets;  ///< In the layout's order.
};

/// All that the next iterations depend on besides their batches.
struct TrainerState {
  int iteration = 0;  ///< Iterations done.
  std::vector<LoraPair> pairs;
  OptimizerState optimizer;
  PendingGradients pending;
  DropoutCounters dropout;
};

/// A loss, a gradient or a parameter is no longer a number.
class GRAFT_EXPORT NotFinite : public UserError {
 public:
  NotFinite(int iteration, const std::string& what);
};

/// Trains one adapter: the parameters, their optimizer and the count of iterations.
class GRAFT_EXPORT Trainer {
 public:
  /// `model` and `layout` must outlive the trainer.
  Trainer(const Llama& model, const AdapterLayout& layout, const std::vector<LoraPair>& initial,
          const TrainOptions& options);

  /// One iteration: the gradients of a batch, and an update if `accumulation_steps` of them are
  /// there. The update is that of one batch with all their samples, each target counting the same.
  /// Throws NotFinite; what the trainer holds must not be saved then.
  StepResult step(const Batch& batch);

  /// Mean loss over all targets of `batches`, without dropout; nothing if `stop` said so between
  /// two of them. Throws NotFinite.
  std::optional<double> evaluate(std::span<const Batch> batches,
                                 const std::function<bool()>& stop = {}) const;

  /// The loss of a batch, then the gradients in all parameters, in their order. Nothing is computed
  /// yet.
  std::vector<mx::array> loss_and_gradients(const Batch& batch, Activations activations) const;

  TrainerState state() const;
  /// Bytes of a state's pairs and vectors, gradients that wait for an update among them if ever
  /// some do.
  std::int64_t state_bytes() const;
  /// Goes on where another trainer was, bit for bit. Throws UserError if that one's adapter or
  /// optimizer was another.
  void restore(TrainerState state);

  const Llama& model() const { return model_; }
  const AdapterLayout& layout() const { return layout_; }
  int iteration() const { return iteration_; }  ///< Iterations done.
  std::vector<LoraPair> pairs() const;          ///< The parameters as they are now.

 private:
  std::vector<mx::array> parameter_arrays() const;
  void set_parameters(const std::vector<LoraPair>& pairs);
  double add_gradients(const Batch& batch);  // Gives the batch's loss.
  void update(StepResult& result);
  void clear_gradients();

  const Llama& model_;
  const AdapterLayout& layout_;
  TrainOptions options_;
  std::vector<mx::Shape> shapes_;  // a, b of each module in turn
  std::vector<float> parameters_;  // all of them, end to end
  std::vector<float> gradients_;   // mean since the last update, laid out alike
  std::int64_t targets_ = 0;       // that it is over
  int iterations_ = 0;             // that it is from
  Optimizer optimizer_;
  DropoutCounters dropout_;
  int iteration_ = 0;
};

}  // namespace graft::llm
