#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "apps/graft/adapter/adapter_file.h"
#include "apps/graft/adapter/atomic_file.h"
#include "apps/graft/commands/commands.h"
#include "apps/graft/commands/common.h"
#include "apps/graft/data/batches.h"
#include "apps/graft/data/dataset.h"
#include "apps/graft/terminal/format.h"
#include "apps/graft/terminal/fusion_table.h"
#include "apps/graft/terminal/memory.h"
#include "apps/graft/terminal/training_display.h"
#include "apps/graft/train/batch_log.h"
#include "apps/graft/train/loop.h"
#include "apps/graft/train/run_record.h"
#include "apps/graft/train/trainer.h"
#include "apps/graft/user_error.h"
#include "graft/context.h"
#include "graft/lora.h"
#include "graft/supports.h"

namespace graft::app {
namespace {

struct Flags {
  ModelFlags model;
  std::string data;
  std::string adapter_path = "adapters";
  std::string init_adapter;
  std::string record_batches;
  std::vector<std::string> target_modules;
  std::string lr_schedule = "constant";
  int num_layers = -1;
  AdapterOptions adapter;
  AdamWOptions adamw;
  LoopOptions loop;
  double learning_rate = 2e-4;
  double max_grad_norm = 1.0;
  int warmup = 0;
  int batch_size = 4;
  int val_batches = 25;
  std::int64_t max_seq_length = 2048;
  std::uint64_t seed = 0;
  bool mask_prompt = false;
  bool require_fused = false;
};

/// The adapter to start from: fresh, or another one's.
SavedAdapter initial_adapter(const Flags& flags, const LlamaConfig& config) {
  if (!flags.init_adapter.empty()) {
    SavedAdapter found = load_adapter(flags.init_adapter, config);
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
  AdapterLayout layout(config, options);
  std::vector<LoraPair> pairs = layout.initial_pairs(flags.seed);
  return {std::move(layout), std::move(pairs)};
}

void print_data(const char* name, const Dataset& data, std::int64_t max_seq_length) {
  fmt::print("{:<12}{} samples, {} tokens to train on\n", name,
             format_count(static_cast<std::int64_t>(data.samples.size())),
             format_count(data.num_targets()));
  if (data.truncated > 0) {
    fmt::print("{:<12}{} samples cut off at {} tokens, the longest had {} (--max-seq-length)\n", "",
               format_count(data.truncated), max_seq_length, format_count(data.longest));
  }
}

std::vector<Batch> validation_batches(const DataSplits& data, const BatchOptions& options,
                                      int max_batches) {
  std::vector<Batch> batches;
  if (!data.valid) return batches;
  Batches all(data.valid->samples, options);
  const std::int64_t count =
      max_batches < 0 ? all.per_epoch() : std::min<std::int64_t>(max_batches, all.per_epoch());
  for (std::int64_t i = 0; i < count; ++i) batches.push_back(all.at(i));
  return batches;
}

void print_header(const Flags& flags, const LoadedModel& model, const AdapterLayout& layout) {
  const LlamaConfig& config = model.llama.config();
  fmt::print("{:<12}{}, weights in {}, on {} threads ({})\n", "model",
             config.name.empty() ? flags.model.model : config.name, flags.model.dtype,
             num_threads(), cpu_isa());
  std::vector<std::string_view> names;
  for (const Projection projection : layout.options().targets) names.push_back(name_of(projection));
  const auto layers =
      layout.all_layers() ? config.num_layers : static_cast<int>(layout.options().layers.size());
  fmt::print("{:<12}rank {}, alpha {}, on {} of {} layers: {}\n", "adapter", layout.options().rank,
             layout.options().alpha, layers, config.num_layers, fmt::join(names, " "));
  fmt::print("{:<12}{} parameters\n", "trainable", format_count(layout.num_parameters()));
}

void print_fusion(const AdapterLayout& layout, bool require_fused) {
  const FusionSummary summary =
      summarize_fusion(graft::mlx::fusion_report(), layout, /*trained=*/true);
  fmt::print("\n{}", summary.table);
  const auto adapted = layout.modules().size();
  fmt::print("adapted projections that ran fused, forward and backward: {} of {}\n",
             adapted - summary.unfused_modules.size(), adapted);
  if (require_fused && !summary.unfused_modules.empty()) {
    throw UserError(fmt::format("--require-fused: {} did not always run fused",
                                summary.unfused_modules.front()));
  }
}

void run(const Flags& flags) {
  const LoadedModel model(flags.model, /*training=*/true);
  const SavedAdapter initial = initial_adapter(flags, model.llama.config());
  const std::int64_t max_seq_length =
      std::min<std::int64_t>(flags.max_seq_length, model.llama.config().context_length);
  const DataSplits data =
      read_data(flags.data, model.file, model.tokenizer,
                {.max_seq_length = max_seq_length, .mask_prompt = flags.mask_prompt});
  const BatchOptions batch_options{
      .batch_size = flags.batch_size, .seed = flags.seed, .pad_token = model.tokenizer.pad()};
  Batches batches(data.train.samples, batch_options);
  const std::vector<Batch> valid = validation_batches(data, batch_options, flags.val_batches);

  print_header(flags, model, initial.layout);
  print_data("train", data.train, max_seq_length);
  if (data.valid) print_data("valid", *data.valid, max_seq_length);

  const LrSchedule schedule{lr_shape_named(flags.lr_schedule), flags.learning_rate, flags.warmup,
                            flags.loop.iters};
  Trainer trainer(model.llama, initial.layout, initial.pairs,
                  {.schedule = schedule,
                   .adamw = flags.adamw,
                   .max_grad_norm = flags.max_grad_norm,
                   .seed = flags.seed});
  make_folder(flags.adapter_path);
  RunRecord record(flags.adapter_path, "Loss of " + flags.adapter_path);
  TrainingDisplay display(flags.loop.iters);
  BatchLog batch_log(flags.record_batches);
  const auto save = [&] {
    save_adapter(flags.adapter_path, initial.layout, trainer.pairs(), flags.model.model);
    record.write_plot();
  };
  LoopObserver observer;
  observer.on_step = [&](int iteration, double loss, double rate, double left) {
    display.step(iteration, loss, rate, left);
  };
  observer.on_report = [&](const TrainReport& report) {
    display.report(report);
    record.report(report);
  };
  observer.on_validation = [&](int iteration, double loss) {
    display.validation(iteration, loss);
    record.validation(iteration, loss, schedule.rate(std::max(1, iteration)));
  };
  observer.on_save = [&](int) { save(); };
  const auto next_batch = [&] {
    Batch batch = batches.at(trainer.iteration());
    batch_log.write(batch);
    return batch;
  };
  run_training(trainer, next_batch, valid, flags.loop, observer);
  if (flags.loop.iters == 0) save();
  display.finish();

  fmt::print("saved to {}, peak memory {}\n", flags.adapter_path,
             format_bytes(peak_memory_bytes()));
  if (flags.loop.iters > 0) print_fusion(initial.layout, flags.require_fused);
}

void add_adapter_flags(CLI::App& command, Flags& flags) {
  command.add_option("--rank", flags.adapter.rank, "Rank of A and B")
      ->check(CLI::Range(std::int64_t{1}, kMaxLoraRank))
      ->capture_default_str();
  command.add_option("--alpha", flags.adapter.alpha, "The adapter counts alpha / rank times")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command.add_option("--dropout", flags.adapter.dropout, "Dropout on the adapter's input")
      ->check(CLI::Range(0.0, 0.999))
      ->capture_default_str();
  command.add_option("--num-layers", flags.num_layers, "Adapt the last so many layers; -1 is all")
      ->capture_default_str();
  std::vector<std::string> names;
  for (const Projection projection : kAllProjections) names.emplace_back(name_of(projection));
  flags.target_modules = names;
  command.add_option("--target-modules", flags.target_modules, "Projections to adapt")
      ->check(CLI::IsMember(names))
      ->delimiter(',')
      ->capture_default_str();
  command.add_option("--init-adapter", flags.init_adapter,
                     "Folder of an adapter to start from; its rank, alpha and modules count");
}

void add_training_flags(CLI::App& command, Flags& flags) {
  command.add_option("--batch-size", flags.batch_size, "Samples an iteration")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command.add_option("--iters", flags.loop.iters, "Iterations")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command.add_option("--learning-rate", flags.learning_rate, "AdamW's learning rate, at its peak")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command.add_option("--lr-schedule", flags.lr_schedule, "Course of the rate after the warm-up")
      ->check(CLI::IsMember({"constant", "linear", "cosine"}))
      ->capture_default_str();
  command.add_option("--warmup", flags.warmup, "Iterations in which the rate climbs to its peak")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command.add_option("--weight-decay", flags.adamw.weight_decay, "AdamW's weight decay")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command
      .add_option("--max-grad-norm", flags.max_grad_norm,
                  "Shorten longer gradients to this norm; 0 is off")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command.add_option("--seed", flags.seed, "Seed of the adapter, the batches and dropout")
      ->capture_default_str();
}

void add_data_flags(CLI::App& command, Flags& flags) {
  command
      .add_option(
          "--data", flags.data,
          "Folder with train.jsonl and perhaps valid.jsonl: a line each with text, or prompt "
          "and completion, or messages")
      ->required();
  command
      .add_option("--max-seq-length", flags.max_seq_length,
                  "Cut longer samples off, in tokens; the model's context is the limit")
      ->check(CLI::Range(2, 1 << 20))
      ->capture_default_str();
  command.add_flag("--mask-prompt", flags.mask_prompt,
                   "Train on answers alone, not on what they answer");
}

void add_report_flags(CLI::App& command, Flags& flags) {
  command
      .add_option("--adapter-path", flags.adapter_path,
                  "Folder for the adapter, metrics.jsonl and loss.svg")
      ->capture_default_str();
  command.add_option("--steps-per-report", flags.loop.steps_per_report, "Iterations a report")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command.add_option("--steps-per-eval", flags.loop.steps_per_eval, "Iterations a validation")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command
      .add_option("--val-batches", flags.val_batches, "Batches to validate on; -1 is all, 0 none")
      ->check(CLI::Range(-1, 1 << 30))
      ->capture_default_str();
  command.add_option("--save-every", flags.loop.save_every, "Iterations a save")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command.add_option("--record-batches", flags.record_batches,
                     "File for the tokens and targets of every batch, a JSON line each, so that "
                     "another program can train on the same");
  command.add_flag("--require-fused", flags.require_fused,
                   "Fail if an adapted projection ran unfused, forward or backward");
}

}  // namespace

void add_finetune(CLI::App& program) {
  const auto flags = std::make_shared<Flags>();
  CLI::App* command = program.add_subcommand("finetune", "Train a LoRA adapter for a model");
  flags->model.add_to(*command);
  add_data_flags(*command, *flags);
  add_adapter_flags(*command, *flags);
  add_training_flags(*command, *flags);
  add_report_flags(*command, *flags);
  command->callback([flags] { run(*flags); });
}

}  // namespace graft::app
