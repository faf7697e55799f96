#include "apps/graft/train/loop.h"

#include <algorithm>
#include <chrono>

namespace graft::app {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Sums since the last report.
struct Window {
  double loss_sum = 0.0;
  double seconds = 0.0;
  std::int64_t targets = 0;
  std::int64_t tokens = 0;

  void add(const Batch& batch, double loss, double step_seconds) {
    loss_sum += loss * static_cast<double>(batch.num_targets);
    seconds += step_seconds;
    targets += batch.num_targets;
    tokens += batch.num_inputs;
  }

  double loss() const { return loss_sum / static_cast<double>(std::max<std::int64_t>(1, targets)); }
  double tokens_per_second() const { return static_cast<double>(tokens) / std::max(seconds, 1e-9); }
};

}  // namespace

void run_training(Trainer& trainer, const std::function<Batch()>& next_batch,
                  std::span<const Batch> valid, const LoopOptions& options,
                  const LoopObserver& observer) {
  const auto validate = [&] {
    if (valid.empty() || !observer.on_validation) return;
    observer.on_validation(trainer.iteration(), trainer.evaluate(valid));
  };
  const auto due = [&](int every) { return every > 0 && trainer.iteration() % every == 0; };

  validate();
  Window window;
  double trained_seconds = 0.0;
  std::int64_t trained_targets = 0;
  const int first = trainer.iteration();
  while (trainer.iteration() < options.iters) {
    const auto start = Clock::now();
    const Batch batch = next_batch();
    const StepResult step = trainer.step(batch);
    const double step_seconds = seconds_since(start);

    window.add(batch, step.loss, step_seconds);
    trained_seconds += step_seconds;
    trained_targets += batch.num_targets;
    const bool last = trainer.iteration() == options.iters;
    if (observer.on_step) {
      const double left =
          trained_seconds / (trainer.iteration() - first) * (options.iters - trainer.iteration());
      observer.on_step(trainer.iteration(), step.loss, window.tokens_per_second(), left);
    }
    if ((due(options.steps_per_report) || last) && observer.on_report) {
      observer.on_report({trainer.iteration(), window.loss(), step.learning_rate,
                          window.tokens_per_second(), trained_targets});
      window = {};
    }
    if (due(options.steps_per_eval) || last) validate();
    if ((due(options.save_every) || last) && observer.on_save) {
      observer.on_save(trainer.iteration());
    }
  }
}

}  // namespace graft::app
