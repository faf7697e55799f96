#include "apps/graft/commands/finetune/run.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <iterator>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "apps/graft/commands/finetune/memory.h"
#include "apps/graft/commands/finetune/output.h"
#include "apps/graft/commands/finetune/resume.h"
#include "apps/graft/commands/finetune/run_folder.h"
#include "apps/graft/terminal/interrupt.h"
#include "apps/graft/user_error.h"
#include "graft/context.h"
#include "graft/llm/adapter/adapter_file.h"
#include "graft/llm/data/batches.h"
#include "graft/llm/data/dataset.h"
#include "graft/llm/evaluate/mean_loss.h"
#include "graft/llm/files/folder_lock.h"
#include "graft/llm/train/batch_log.h"
#include "graft/llm/train/loop.h"
#include "graft/llm/train/trainer.h"
#include "graft/mlx/fusion.h"

namespace graft::app {
namespace {

/// The adapter to start from: fresh, or another one's.
SavedAdapter initial_adapter(const FinetuneFlags& flags, const LanguageModel& model) {
  const LlamaConfig& config = model.llama.config();
  const auto warn_if_other = [&](const std::string& path, const ModelIdentity& base) {
    warn_of_base(path, doubt_about_base(base, config, [&] { return model.fingerprint(); }));
  };
  if (!flags.init_adapter.empty()) {
    SavedAdapter found = load_adapter(flags.init_adapter, config);
    warn_if_other(flags.init_adapter, found.base);
    AdapterOptions options = found.layout.options();
    options.dropout = flags.adapter.dropout;
    return {AdapterLayout(config, options), std::move(found.pairs)};
  }
  AdapterOptions options = flags.adapter;
  options.layers = last_layers(config, flags.num_layers);
  options.targets.clear();
  for (const Projection projection : kAllProjections) {
    if (std::ranges::find(flags.target_modules, name_of(projection)) !=
        flags.target_modules.end()) {
      options.targets.push_back(projection);
    }
  }
  if (!flags.resume_adapter_file.empty()) {
    SavedAdapter found = load_adapter_file(flags.resume_adapter_file, options, config);
    warn_if_other(flags.resume_adapter_file, found.base);
    options = found.layout.options();
    options.dropout = flags.adapter.dropout;
    return {AdapterLayout(config, options), std::move(found.pairs)};
  }
  AdapterLayout layout(config, options);
  std::vector<LoraPair> pairs = layout.initial_pairs(flags.seed);
  return {std::move(layout), std::move(pairs)};
}

// An adapter to start from brings its own sizes and places: flags that say otherwise would be
// overruled in silence. From here on the flags are those of the adapter.
void take_sizes_of_adapter(FinetuneFlags& flags, const LlamaConfig& config,
                           const AdapterLayout& layout) {
  const bool by_folder = !flags.init_adapter.empty();
  if (!by_folder && flags.resume_adapter_file.empty()) return;
  const AdapterOptions& found = layout.options();
  std::vector<std::string> targets;
  for (const Projection projection : found.targets) targets.emplace_back(name_of(projection));
  const auto check = [&](const char* flag, bool same, const std::string& has) {
    if (same || !flags.given.contains(flag)) return;
    throw UsageError(
        fmt::format("{}: the adapter that the run starts from has {}; leave this flag "
                    "out, or start anew without {} {}",
                    flag, has, by_folder ? "--init-adapter" : "--resume-adapter-file",
                    by_folder ? flags.init_adapter : flags.resume_adapter_file));
  };
  check("--rank", flags.adapter.rank == found.rank, fmt::format("rank {}", found.rank));
  check("--alpha", flags.adapter.alpha == found.alpha, fmt::format("alpha {}", found.alpha));
  check(
      "--num-layers",
      found.layers == last_layers(config, flags.num_layers) ||
          (flags.num_layers == -1 && std::ssize(found.layers) == config.num_layers),
      found.layers.empty() ? "all layers" : fmt::format("layers {}", fmt::join(found.layers, ",")));
  check("--target-modules",
        std::set(flags.target_modules.begin(), flags.target_modules.end()) ==
            std::set(targets.begin(), targets.end()),
        fmt::format("modules {}", fmt::join(targets, ",")));
  flags.adapter.rank = found.rank;
  flags.adapter.alpha = found.alpha;
  flags.target_modules = targets;
}

// The first `max_batches` batches of a split, -1 being all.
std::vector<Batch> batches_of(const std::optional<Dataset>& split, const BatchOptions& options,
                              int max_batches) {
  std::vector<Batch> batches;
  if (!split) return batches;
  Batches all(split->samples, options);
  const std::int64_t count =
      max_batches < 0 ? all.per_epoch() : std::min<std::int64_t>(max_batches, all.per_epoch());
  for (std::int64_t i = 0; i < count; ++i) batches.push_back(all.at(i));
  return batches;
}

// What flags must be together.
void check_flags(const FinetuneFlags& flags) {
  check_savable(flags);
  if (flags.optimizer != "adamw" && flags.given.contains("--weight-decay") &&
      flags.weight_decay > 0) {
    throw UsageError(fmt::format(
        "--weight-decay: {} has none; leave it out, or choose --optimizer adamw", flags.optimizer));
  }
  if (flags.loop.iters > 0 && flags.loop.iters < flags.grad_accumulation_steps) {
    throw UsageError(
        fmt::format("--grad-accumulation-steps {}: --iters {} would never update the adapter",
                    flags.grad_accumulation_steps, flags.loop.iters));
  }
}

/// The data as a run takes it.
struct RunData {
  DataSplits splits;
  std::int64_t max_seq_length = 0;
  BatchOptions batching;
  std::vector<Batch> valid;
  std::vector<Batch> test;  // with --test
};

RunData read_run_data(const FinetuneFlags& flags, const LanguageModel& model) {
  RunData data;
  data.max_seq_length =
      std::min<std::int64_t>(flags.max_seq_length, model.llama.config().context_length);
  data.splits = read_data(flags.data, model.file, model.tokenizer,
                          {.max_seq_length = data.max_seq_length,
                           .mask_prompt = flags.mask_prompt,
                           .written = control_tokens(flags.parse_special)},
                          {.valid = flags.val_batches != 0, .test = flags.test});
  data.batching = {
      .batch_size = flags.batch_size, .seed = flags.seed, .pad_token = model.tokenizer.pad()};
  data.valid = batches_of(data.splits.valid, data.batching, flags.val_batches);
  if (flags.loop.early_stop > 0 && data.valid.empty()) {
    throw UserError(fmt::format(
        "--early-stop looks at the validation loss: it needs a valid.jsonl in {} and --val-batches "
        "above 0",
        flags.data));
  }
  if (!flags.test) return data;
  data.test = batches_of(data.splits.test, data.batching, flags.test_batches);
  if (data.test.empty()) {
    throw UserError(
        fmt::format("--test needs a test.jsonl in {} and --test-batches above 0", flags.data));
  }
  return data;
}

TrainOptions train_options(const FinetuneFlags& flags) {
  return {
      .schedule = {lr_shape_named(flags.lr_schedule), flags.learning_rate, flags.warmup,
                   flags.loop.iters},
      .optimizer = {.kind = optimizer_named(flags.optimizer), .weight_decay = flags.weight_decay},
      .accumulation_steps = flags.grad_accumulation_steps,
      .max_grad_norm = flags.max_grad_norm,
      .seed = flags.seed,
      .activations = flags.grad_checkpoint ? Activations::kRecomputed : Activations::kKept};
}

RunEnd train(const FinetuneFlags& flags, const InterruptWatch& interrupts, Trainer& trainer,
             Batches& batches, BatchLog& batch_log, const std::vector<Batch>& valid,
             RunFolder& folder, std::int64_t expected_memory, LoopState& loop, RunOutput& output) {
  const LrSchedule schedule = train_options(flags).schedule;
  LoopObserver observer;
  observer.on_step = [&](int iteration, double loss, double rate, double left) {
    output.step(iteration, loss, rate, left);
    return_memory_above(expected_memory);
  };
  observer.on_report = [&](const TrainReport& report) {
    output.report(report);
    folder.record().report(report);
  };
  observer.on_validation = [&](int iteration, double loss) {
    output.validation(iteration, loss);
    folder.record().validation(iteration, loss, schedule.rate(std::max(1, iteration)));
  };
  observer.on_save = [&](const LoopState& state) {
    output.saved(trainer.iteration(), folder.save(trainer, state));
  };
  observer.stop = [&] { return interrupts.requested(); };
  const auto next_batch = [&] {
    Batch batch = batches.at(trainer.iteration());
    batch_log.write(batch);
    return batch;
  };
  try {
    return run_training(trainer, next_batch, valid, flags.loop, observer, loop);
  } catch (const NotFinite& error) {
    throw UserError(error.what() + folder.what_is_kept(/*can_go_on=*/false));
  } catch (const UserError& error) {
    throw UserError(error.what() + folder.what_is_kept(/*can_go_on=*/true));
  }
}

// With --early-stop, the best adapter takes the place of the last. Gives the pairs of the one that
// is there in the end.
std::vector<LoraPair> settle_adapter(const FinetuneFlags& flags, const Trainer& trainer,
                                     const LlamaConfig& model, RunFolder& folder,
                                     BestValidation& best, RunOutput& output) {
  if (flags.loop.early_stop == 0 || best.iteration == 0) {
    best = {};
    return trainer.pairs();
  }
  if (auto pairs = folder.go_back_to(best.iteration, model)) return *std::move(pairs);
  output.note(fmt::format(
      "the checkpoint of iteration {}, the best, is gone: the adapter is that of iteration {}",
      best.iteration, trainer.iteration()));
  best = {};
  return trainer.pairs();
}

void test(const FinetuneFlags& flags, const InterruptWatch& interrupts, const Llama& model,
          const AdapterLayout& layout, std::vector<LoraPair> pairs,
          const std::vector<Batch>& batches, RunOutput& output) {
  const ModelAdapter adapter{&layout, std::move(pairs), std::nullopt, {}};
  const auto mean = mean_loss(model, &adapter, batches, [&] { return interrupts.requested(); });
  if (!mean) {
    throw Interrupted(fmt::format("interrupted while testing; training is done and saved in {}",
                                  flags.adapter_path));
  }
  output.test(*mean);
}

}  // namespace

void run_finetune(FinetuneFlags flags) {
  std::signal(SIGPIPE, SIG_IGN);  // whoever reads the progress may go, without an end to the run
  std::optional<FolderLock> lock;
  std::optional<FoundCheckpoint> from;
  if (flags.resume) {
    lock.emplace(flags.adapter_path);
    from = checkpoint_to_resume(flags);
  } else {
    refuse_interrupted_run(flags);
  }
  check_flags(flags);
  const LanguageModel model = load_model(flags.model, /*training=*/true);
  flags.model.threads = num_threads();
  const LlamaConfig& config = model.llama.config();
  const SavedAdapter initial =
      from ? load_adapter(from->path, config) : initial_adapter(flags, model);
  if (!from) take_sizes_of_adapter(flags, config, initial.layout);
  const RunData data = read_run_data(flags, model);
  const RunInputs inputs = inputs_of(model.fingerprint(), data.splits);
  if (from) check_same_inputs(flags, inputs, from->checkpoint.inputs);

  const std::unique_ptr<RunOutput> output = make_run_output(flags);
  output->start({config, initial.layout, data.splits, data.max_seq_length});
  if (const int left = flags.loop.iters % flags.grad_accumulation_steps; left > 0) {
    output->note(
        fmt::format("the last {} iterations make no update: --iters is no multiple of "
                    "--grad-accumulation-steps",
                    left));
  }
  Trainer trainer(model.llama, initial.layout, initial.pairs, train_options(flags));
  if (from) trainer.restore(from->trainer_state(initial.pairs));
  const std::int64_t expected_memory = check_memory({.flags = flags,
                                                     .trainer = trainer,
                                                     .data = data.splits,
                                                     .pad_token = data.batching.pad_token});
  output->memory(expected_memory);
  // All that may fail comes before what an earlier run left is replaced.
  prepare_adapter_folder(flags.adapter_path);
  if (!lock) {
    lock.emplace(flags.adapter_path);
    refuse_interrupted_run(flags);  // again: a run may have come and gone while the model was read
  }
  Batches batches(data.splits.train.samples, data.batching);
  BatchLog batch_log(flags.record_batches, trainer.iteration());
  RunFolder folder(flags, initial.layout, batches, inputs, from ? from->checkpoint.metrics : "");
  LoopState loop;
  if (from) {
    loop = from->checkpoint.loop;
    folder.resume(trainer);
    output->resumed(trainer.iteration(), from->path);
  }
  const int first = trainer.iteration();
  const InterruptWatch interrupts;
  RunOutcome outcome;
  outcome.end = train(flags, interrupts, trainer, batches, batch_log, data.valid, folder,
                      expected_memory, loop, *output);
  outcome.iteration = trainer.iteration();
  outcome.trained = trainer.iteration() > first;
  outcome.modules = std::ssize(initial.layout.modules());
  outcome.fusion = summarize_fusion(graft::mlx::fusion_report(), initial.layout, /*trained=*/true);
  if (outcome.end == RunEnd::kInterrupted) {
    output->end(outcome);
    throw Interrupted(fmt::format("interrupted and saved after iteration {} of {}; go on with: {}",
                                  trainer.iteration(), flags.loop.iters, resume_command(flags)));
  }
  outcome.best = loop.best;
  std::vector<LoraPair> pairs =
      settle_adapter(flags, trainer, config, folder, outcome.best, *output);
  if (flags.test) {
    test(flags, interrupts, model.llama, initial.layout, std::move(pairs), data.test, *output);
  }
  output->end(outcome);
  if (flags.require_fused && outcome.trained && !outcome.fusion.unfused_modules.empty()) {
    throw UserError(fmt::format("--require-fused: {} did not always run fused",
                                outcome.fusion.unfused_modules.front()));
  }
}

}  // namespace graft::app
