#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "apps/graft/train/trainer.h"

namespace graft::app {

struct LoopOptions {
  int iters = 1000;
  int steps_per_report = 10;
  int steps_per_eval = 200;
  int save_every = 100;
};

/// What happened since the last report.
struct TrainReport {
  int iteration = 0;
  double loss = 0.0;  ///< Mean over the targets since the last report.
  double learning_rate = 0.0;
  double tokens_per_second = 0.0;    ///< Tokens that are not padding; time of training steps only.
  std::int64_t trained_targets = 0;  ///< Since the start.
};

/// Called as training goes along, all on the training thread; any may be empty.
struct LoopObserver {
  /// After each step: the iteration, its loss, tokens/s since the last report, seconds left.
  std::function<void(int, double, double, double)> on_step;
  std::function<void(const TrainReport&)> on_report;
  std::function<void(int, double)> on_validation;  ///< Iterations done, and the loss.
  std::function<void(int)> on_save;                ///< Time to save; also after the last one.
};

/// Runs `options.iters` iterations on batches from `next_batch`, validating before the first, every
/// `steps_per_eval` and after the last.
void run_training(Trainer& trainer, const std::function<Batch()>& next_batch,
                  std::span<const Batch> valid, const LoopOptions& options,
                  const LoopObserver& observer);

}  // namespace graft::app
