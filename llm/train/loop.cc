#include "graft/llm/train/loop.h"

#include <algorithm>
#include <chrono>
#include <optional>

namespace graft::llm {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void add(LossWindow& window, const Batch& batch, double loss, double step_seconds) {
  window.loss_sum += loss * static_cast<double>(batch.num_targets);
  window.seconds += step_seconds;
  window.targets += batch.num_targets;
  window.tokens += batch.num_inputs;
}

double mean_loss(const LossWindow& window) {
  return window.loss_sum / static_cast<double>(std::max<std::int64_t>(1, window.targets));
}

double tokens_per_second(const LossWindow& window) {
  return static_cast<double>(window.tokens) / std::max(window.seconds, 1e-9);
}

void take(BestValidation& best, int iteration, double loss) {
  if (iteration == 0) return;
  if (best.iteration == 0 || loss < best.loss) {
    best = {loss, iteration, 0};
  } else {
    ++best.validations_since;
  }
}

}  // namespace

bool stops_early(const LoopState& state, const LoopOptions& options) {
  return options.early_stop > 0 && state.best.validations_since >= options.early_stop;
}

RunEnd run_training(Trainer& trainer, const std::function<Batch()>& next_batch,
                    std::span<const Batch> valid, const LoopOptions& options,
                    const LoopObserver& observer, LoopState& state) {
  const auto due = [&](int every) { return every > 0 && trainer.iteration() % every == 0; };
  const auto validate = [&] {
    if (valid.empty() || !observer.on_validation) return true;
    const std::optional<double> loss = trainer.evaluate(valid, observer.stop);
    if (!loss) return false;
    state.validated = trainer.iteration();
    take(state.best, trainer.iteration(), *loss);
    observer.on_validation(trainer.iteration(), *loss);
    return true;
  };
  const auto save = [&] {
    if (state.saved == trainer.iteration() || !observer.on_save) return;
    state.saved = trainer.iteration();
    observer.on_save(state);
  };

  double trained_seconds = 0.0;
  const int first = trainer.iteration();
  const auto step = [&] {
    const auto start = Clock::now();
    const Batch batch = next_batch();
    const StepResult result = trainer.step(batch);
    const double step_seconds = seconds_since(start);

    add(state.window, batch, result.loss, step_seconds);
    trained_seconds += step_seconds;
    state.trained_targets += batch.num_targets;
    if (observer.on_step) {
      const double left =
          trained_seconds / (trainer.iteration() - first) * (options.iters - trainer.iteration());
      observer.on_step(trainer.iteration(), result.loss, tokens_per_second(state.window), left);
    }
    const bool last = trainer.iteration() == options.iters;
    if ((due(options.steps_per_report) || last) && observer.on_report) {
      observer.on_report({trainer.iteration(), mean_loss(state.window), result.learning_rate,
                          tokens_per_second(state.window), state.trained_targets});
      state.window = {};
    }
  };

  // A save comes after the validation of its iteration, so that an adapter that has become useless
  // is found out before it takes the place of a good one.
  for (;;) {
    const int iteration = trainer.iteration();
    const bool last = iteration >= options.iters;
    bool stopped = observer.stop && observer.stop();
    if (!stopped && (due(options.steps_per_eval) || last) && state.validated != iteration) {
      stopped = !validate();
    }
    const bool early = stops_early(state, options);
    const bool best = options.early_stop > 0 && iteration > 0 && state.best.iteration == iteration;
    if (stopped || last || early || best || (due(options.save_every) && iteration > 0)) save();
    if (stopped) return RunEnd::kInterrupted;
    if (last) return RunEnd::kFinished;
    if (early) return RunEnd::kStoppedEarly;
    step();
  }
}

}  // namespace graft::llm
