#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "graft/export.h"
#include "graft/llm/train/trainer.h"

namespace graft::llm {

/// How long a run is, and what happens on its way.
struct LoopOptions {
  int iters = 1000;           ///< Iterations, those done before included.
  int steps_per_report = 10;  ///< Iterations a report.
  int steps_per_eval = 200;   ///< Iterations a validation.
  int save_every = 100;       ///< Iterations a save; 0 saves at the end only.
  int early_stop = 0;         ///< End after so many validations without a better loss; 0 is never.
};

/// What happened since the last report.
struct TrainReport {
  int iteration = 0;
  double loss = 0.0;  ///< Mean over the targets since the last report.
  double learning_rate = 0.0;
  double tokens_per_second = 0.0;    ///< Tokens that are not padding; time of training steps only.
  std::int64_t trained_targets = 0;  ///< Since the start.
};

/// Sums over the iterations since the last report.
struct LossWindow {
  double loss_sum = 0.0;
  double seconds = 0.0;
  std::int64_t targets = 0;
  std::int64_t tokens = 0;
};

/// The best validation since training began, which that before the first iteration is not.
struct BestValidation {
  double loss = 0.0;
  int iteration = 0;          ///< 0 is none yet.
  int validations_since = 0;  ///< In a row that were no better.
};

/// Where a run is, apart from what the trainer holds.
struct LoopState {
  LossWindow window;
  std::int64_t trained_targets = 0;  ///< Since the start.
  int validated = -1;                ///< The iteration of the last validation; -1 is none yet.
  int saved = -1;                    ///< The same of the last save.
  BestValidation best;
};

/// How a run ended: it did all iterations, validation got no better, or `stop` said so.
enum class RunEnd { kFinished, kStoppedEarly, kInterrupted };

/// Called as training goes along, all on the training thread; any may be empty.
struct LoopObserver {
  /// After each step: the iteration, its loss, tokens/s since the last report, seconds left.
  std::function<void(int, double, double, double)> on_step;
  std::function<void(const TrainReport&)> on_report;
  std::function<void(int, double)> on_validation;  ///< Iterations done, and the loss.
  std::function<void(const LoopState&)> on_save;   ///< Time to save.
  std::function<bool()> stop;  ///< Asked between iterations and while validating.
};

/// Runs iterations on batches from `next_batch` until the trainer has done `options.iters`, and
/// validates before the first, every `steps_per_eval` and after the last. Saves every `save_every`,
/// after the last, and when stopped; with `early_stop`, also after each validation that is the best
/// so far. `state` is a new run's, or that of the last save: then the observer hears what it would
/// have heard from there on.
GRAFT_EXPORT RunEnd run_training(Trainer& trainer, const std::function<Batch()>& next_batch,
                                 std::span<const Batch> valid, const LoopOptions& options,
                                 const LoopObserver& observer, LoopState& state);

/// Whether a run that has got to `state` ends there, before its last iteration.
GRAFT_EXPORT bool stops_early(const LoopState& state, const LoopOptions& options);

}  // namespace graft::llm
