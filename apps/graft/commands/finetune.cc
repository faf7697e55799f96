#include "apps/graft/commands/finetune.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "apps/graft/adapter/adapter_file.h"
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

/// The adapter to start from: fresh, or another one's.
SavedAdapter initial_adapter(const FinetuneFlags& flags, const LlamaConfig& config) {
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

void print_header(const FinetuneFlags& flags, const LoadedModel& model,
                  const AdapterLayout& layout) {
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

}  // namespace

void run_finetune(const FinetuneFlags& flags) {
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
  prepare_adapter_folder(flags.adapter_path);
  BatchLog batch_log(flags.record_batches);
  RunRecord record(flags.adapter_path, "Loss of " + flags.adapter_path);
  TrainingDisplay display(flags.loop.iters);
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

}  // namespace graft::app
