#include "apps/graft/commands/finetune.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "apps/graft/adapter/adapter_file.h"
#include "apps/graft/adapter/folder_lock.h"
#include "apps/graft/allocator.h"
#include "apps/graft/commands/finetune_memory.h"
#include "apps/graft/commands/finetune_resume.h"
#include "apps/graft/data/batches.h"
#include "apps/graft/data/dataset.h"
#include "apps/graft/terminal/format.h"
#include "apps/graft/terminal/fusion_table.h"
#include "apps/graft/terminal/memory.h"
#include "apps/graft/terminal/training_display.h"
#include "apps/graft/train/batch_log.h"
#include "apps/graft/train/checkpoint.h"
#include "apps/graft/train/interrupt.h"
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
  if (!flags.resume_adapter_file.empty()) {
    SavedAdapter found = load_adapter_file(flags.resume_adapter_file, options, config);
    options = found.layout.options();
    options.dropout = flags.adapter.dropout;
    return {AdapterLayout(config, options), std::move(found.pairs)};
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

// What a run writes into its folder.
class RunFolder {
 public:
  RunFolder(const FinetuneFlags& flags, const AdapterLayout& layout, const Batches& batches,
            RunInputs inputs, const std::string& metrics)
      : flags_(flags),
        layout_(layout),
        batches_(batches),
        inputs_(std::move(inputs)),
        record_(flags.adapter_path, "Loss of " + flags.adapter_path, metrics) {}

  RunRecord& record() { return record_; }

  void save(const Trainer& trainer, const LoopState& loop) {
    return_freed_memory();  // else what is copied here comes on top of an iteration's room
    const std::vector<FileContents> adapter =
        adapter_files(layout_, trainer.pairs(), flags_.model.model);
    const std::int64_t per_epoch = batches_.per_epoch();
    save_checkpoint(flags_.adapter_path, adapter,
                    {.flags = saved_flags(flags_),
                     .inputs = inputs_,
                     .data = {.seed = flags_.seed,
                              .batches_per_epoch = per_epoch,
                              .epoch = trainer.iteration() / per_epoch,
                              .position = trainer.iteration() % per_epoch},
                     .loop = loop,
                     .trainer = trainer.state(),
                     .metrics = record_.metrics()});
    saved_ = trainer.iteration();
    publish(adapter);
  }

  /// The adapter of the checkpoint, once more: a run may have ended between the two.
  void resume(const Trainer& trainer) {
    saved_ = trainer.iteration();
    publish(adapter_files(layout_, trainer.pairs(), flags_.model.model));
  }

  /// What is left of the run if it fails, to add to the reason.
  std::string what_is_kept(bool can_go_on) const {
    if (saved_ < 0) return "; nothing had been saved yet";
    return fmt::format("; kept: the checkpoint of iteration {} in {}{}", saved_,
                       checkpoints_folder(flags_.adapter_path),
                       can_go_on ? "; then go on with: " + resume_command(flags_) : "");
  }

 private:
  void publish(const std::vector<FileContents>& adapter) const {
    write_files_atomically(flags_.adapter_path, adapter);
    record_.write_plot();
  }

  const FinetuneFlags& flags_;
  const AdapterLayout& layout_;
  const Batches& batches_;
  RunInputs inputs_;
  RunRecord record_;
  int saved_ = -1;
};

// Takes over the folder from a writer that was killed, and for a new run from one that is finished.
void clear_folder(const std::string& folder, bool resume) {
  remove_unfinished_writes(folder);
  if (resume) return remove_unfinished_writes(checkpoints_folder(folder));
  remove_folder_atomically(checkpoints_folder(folder));
}

// True if the run came to its end, false if the user interrupted it.
bool train(const FinetuneFlags& flags, const LrSchedule& schedule, Trainer& trainer,
           Batches& batches, BatchLog& batch_log, const std::vector<Batch>& valid,
           RunFolder& folder, LoopState& loop) {
  const InterruptWatch interrupts;
  TrainingDisplay display(flags.loop.iters);
  LoopObserver observer;
  observer.on_step = [&](int iteration, double loss, double rate, double left) {
    display.step(iteration, loss, rate, left);
  };
  observer.on_report = [&](const TrainReport& report) {
    display.report(report);
    folder.record().report(report);
  };
  observer.on_validation = [&](int iteration, double loss) {
    display.validation(iteration, loss);
    folder.record().validation(iteration, loss, schedule.rate(std::max(1, iteration)));
  };
  observer.on_save = [&](const LoopState& state) { folder.save(trainer, state); };
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

}  // namespace

void run_finetune(FinetuneFlags flags) {
  std::optional<FolderLock> lock;
  std::optional<FoundCheckpoint> from;
  if (flags.resume) {
    lock.emplace(flags.adapter_path);
    from = checkpoint_to_resume(flags);
  } else {
    refuse_interrupted_run(flags);
  }
  const LoadedModel model(flags.model, /*training=*/true);
  flags.model.threads = num_threads();
  const LlamaConfig& config = model.llama.config();
  const SavedAdapter initial =
      from ? load_adapter(from->path, config) : initial_adapter(flags, config);
  const std::int64_t max_seq_length =
      std::min<std::int64_t>(flags.max_seq_length, config.context_length);
  const DataSplits data =
      read_data(flags.data, model.file, model.tokenizer,
                {.max_seq_length = max_seq_length, .mask_prompt = flags.mask_prompt});
  const BatchOptions batch_options{
      .batch_size = flags.batch_size, .seed = flags.seed, .pad_token = model.tokenizer.pad()};
  Batches batches(data.train.samples, batch_options);
  const std::vector<Batch> valid = validation_batches(data, batch_options, flags.val_batches);
  const RunInputs inputs = inputs_of(flags, data);
  if (from) check_same_inputs(flags, inputs, from->checkpoint.inputs);

  print_header(flags, model, initial.layout);
  print_data("train", data.train, max_seq_length);
  if (data.valid) print_data("valid", *data.valid, max_seq_length);

  const LrSchedule schedule{lr_shape_named(flags.lr_schedule), flags.learning_rate, flags.warmup,
                            flags.loop.iters};
  Trainer trainer(
      model.llama, initial.layout, initial.pairs,
      {.schedule = schedule,
       .adamw = flags.adamw,
       .max_grad_norm = flags.max_grad_norm,
       .seed = flags.seed,
       .activations = flags.grad_checkpoint ? Activations::kRecomputed : Activations::kKept});
  if (from) trainer.restore(from->trainer_state(config));
  const std::int64_t memory = check_memory({.flags = flags,
                                            .config = config,
                                            .layout = initial.layout,
                                            .data = data,
                                            .pad_token = batch_options.pad_token,
                                            .first_iteration = trainer.iteration()});
  fmt::print("{:<12}about {} at the peak\n", "memory", format_bytes(memory));
  // All that may fail comes before what an earlier run left is replaced.
  prepare_adapter_folder(flags.adapter_path);
  if (!lock) {
    lock.emplace(flags.adapter_path);
    refuse_interrupted_run(flags);  // again: a run may have come and gone while the model was read
  }
  BatchLog batch_log(flags.record_batches, trainer.iteration());
  clear_folder(flags.adapter_path, flags.resume);
  RunFolder folder(flags, initial.layout, batches, inputs, from ? from->checkpoint.metrics : "");
  LoopState loop;
  if (from) {
    loop = from->checkpoint.loop;
    folder.resume(trainer);
    fmt::print("{:<12}after iteration {} of {}, from {}\n", "resumed", trainer.iteration(),
               flags.loop.iters, from->path);
  }
  const int first = trainer.iteration();
  if (!train(flags, schedule, trainer, batches, batch_log, valid, folder, loop)) {
    throw Interrupted(fmt::format("interrupted and saved after iteration {} of {}; go on with: {}",
                                  trainer.iteration(), flags.loop.iters, resume_command(flags)));
  }
  fmt::print("saved to {}, peak memory {}\n", flags.adapter_path,
             format_bytes(peak_memory_bytes()));
  if (trainer.iteration() > first) print_fusion(initial.layout, flags.require_fused);
}

}  // namespace graft::app
