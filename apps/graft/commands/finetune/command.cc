#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "apps/graft/commands/commands.h"
#include "apps/graft/commands/finetune/config_file.h"
#include "apps/graft/commands/finetune/flags.h"
#include "apps/graft/commands/finetune/run.h"
#include "apps/graft/commands/flags.h"
#include "apps/graft/commands/number_range.h"
#include "apps/graft/user_error.h"
#include "graft/llm/model/projection.h"
#include "graft/lora.h"

namespace graft::app {
namespace {

constexpr const char* kAllModules = "all";

void add_adapter_flags(CLI::App& command, FinetuneFlags& flags) {
  begin_group(command, "Adapter");
  command.add_option("--rank", flags.adapter.rank, "Rank of A and B")
      ->check(between<int>(1, kMaxLoraRank))
      ->capture_default_str();
  command.add_option("--alpha", flags.adapter.alpha, "The adapter counts alpha / rank times")
      ->check(above(0.0f))
      ->capture_default_str();
  command.add_option("--dropout", flags.adapter.dropout, "Dropout on the adapter's input")
      ->check(between(0.0f, 0.999f))
      ->capture_default_str();
  command.add_option("--num-layers", flags.num_layers, "Adapt the last so many layers; -1 is all")
      ->check(at_least(-1))
      ->capture_default_str();
  std::vector<std::string> names;
  for (const Projection projection : kAllProjections) names.emplace_back(name_of(projection));
  flags.target_modules = names;
  std::vector<std::string> words = names;
  words.emplace_back(kAllModules);
  command.add_option("--target-modules", flags.target_modules, "Projections to adapt")
      ->check(CLI::IsMember(words))
      ->delimiter(',')
      ->default_str(kAllModules);
  command
      .add_option("--init-adapter", flags.init_adapter,
                  "Start from this adapter, with its rank, layers and modules")
      ->type_name(kFolder);
  command
      .add_option("--resume-adapter-file", flags.resume_adapter_file,
                  "Start from these weights, with a fresh optimizer")
      ->type_name(kFile)
      ->excludes("--init-adapter");
}

void add_training_flags(CLI::App& command, FinetuneFlags& flags) {
  begin_group(command, "Training");
  command.add_option("--batch-size", flags.batch_size, "Samples an iteration")
      ->check(at_least(1))
      ->capture_default_str();
  command.add_option("--iters", flags.loop.iters, "Iterations")
      ->check(at_least(0))
      ->capture_default_str();
  command
      .add_option("--grad-accumulation-steps", flags.grad_accumulation_steps,
                  "Iterations an update, as of one larger batch")
      ->check(at_least(1))
      ->capture_default_str();
  command.add_option("--optimizer", flags.optimizer, "What updates the adapter")
      ->check(CLI::IsMember({"adamw", "adam", "sgd"}))
      ->capture_default_str();
  command.add_option("--learning-rate", flags.learning_rate, "Learning rate, at its peak")
      ->check(at_least(0.0))
      ->capture_default_str();
  command.add_option("--lr-schedule", flags.lr_schedule, "Course of the rate after the warm-up")
      ->check(CLI::IsMember({"constant", "linear", "cosine"}))
      ->capture_default_str();
  command.add_option("--warmup", flags.warmup, "Iterations in which the rate climbs to its peak")
      ->check(at_least(0))
      ->capture_default_str();
  command.add_option("--weight-decay", flags.weight_decay, "AdamW's weight decay")
      ->check(at_least(0.0))
      ->capture_default_str();
  command
      .add_option("--max-grad-norm", flags.max_grad_norm,
                  "Shorten longer gradients to this norm; 0 is off")
      ->check(at_least(0.0))
      ->capture_default_str();
  command
      .add_option("--early-stop", flags.loop.early_stop,
                  "End after N validations without a better one, and keep the best; 0 is never")
      ->check(at_least(0))
      ->capture_default_str();
  command.add_flag("--grad-checkpoint", flags.grad_checkpoint,
                   "Less memory, more time: compute activations twice");
  command.add_option("--seed", flags.seed, "Seed of the adapter, the batches and dropout")
      ->check(at_least<std::uint64_t>(0))
      ->capture_default_str();
}

void add_data_flags(CLI::App& command, FinetuneFlags& flags) {
  begin_group(command, "Data");
  command
      .add_option("--data", flags.data,
                  "Folder with train.jsonl, perhaps valid.jsonl, test.jsonl: a JSON object a line "
                  "with text, or prompt and completion, or messages; needed unless --resume")
      ->type_name(kFolder);
  command
      .add_option("--max-seq-length", flags.max_seq_length,
                  "Cut longer samples off after so many tokens")
      ->check(between<std::int64_t>(2, 1 << 20))
      ->capture_default_str();
  command.add_flag("--mask-prompt", flags.mask_prompt,
                   "Train on answers alone, not on what they answer");
  add_parse_special_flag(command, flags.parse_special, "the data");
}

void add_report_flags(CLI::App& command, FinetuneFlags& flags) {
  begin_group(command, "Output");
  command
      .add_option("--adapter-path", flags.adapter_path, "Folder for adapter, checkpoints, metrics")
      ->type_name(kFolder)
      ->capture_default_str();
  command.add_option("--steps-per-report", flags.loop.steps_per_report, "Iterations a report")
      ->check(at_least(1))
      ->capture_default_str();
  command.add_option("--steps-per-eval", flags.loop.steps_per_eval, "Iterations a validation")
      ->check(at_least(1))
      ->capture_default_str();
  command
      .add_option("--val-batches", flags.val_batches, "Batches to validate on; -1 is all, 0 none")
      ->check(at_least(-1))
      ->capture_default_str();
  command.add_flag("--test", flags.test, "Measure the adapter on test.jsonl in the end");
  command.add_option("--test-batches", flags.test_batches, "Batches of that at most; -1 is all")
      ->check(at_least(-1))
      ->capture_default_str();
  command
      .add_option("--save-every", flags.loop.save_every,
                  "Iterations a checkpoint; 0 saves at the end only")
      ->check(at_least(0))
      ->capture_default_str();
  command.add_flag("--resume", flags.resume, "Go on from the last checkpoint in --adapter-path");
  command
      .add_option("--record-batches", flags.record_batches,
                  "Write every batch, for other programs to train on")
      ->type_name(kFile);
  command.add_flag("--require-fused", flags.require_fused,
                   "Fail if an adapted projection did not run fused");
  CLI::Option* quiet = command.add_flag(
      "--quiet", flags.quiet, "Print nothing but errors and what is left out of the data");
  command.add_flag("--json", flags.json, "Print a JSON object a line, for programs")
      ->excludes(quiet);
}

// In place of "all", what it stands for.
void name_modules(std::vector<std::string>& modules) {
  if (std::ranges::find(modules, kAllModules) == modules.end()) return;
  modules.clear();
  for (const Projection projection : kAllProjections) modules.emplace_back(name_of(projection));
}

// A resumed run has these from its checkpoint.
void require_unless_resumed(const FinetuneFlags& flags, const char* name) {
  if (!flags.resume && !flags.given.contains(name)) throw CLI::RequiredError(name);
}

}  // namespace

void add_finetune(CLI::App& program, const std::string& called) {
  const auto flags = std::make_shared<FinetuneFlags>();
  const auto config = std::make_shared<std::string>();
  CLI::App* command = program.add_subcommand("finetune", "Train a LoRA adapter for a model");
  begin_group(*command, "Options");  // the parser's own heading, of --help
  command->add_option("--config", *config, "JSON with flags, {\"rank\": 16}; those given here win")
      ->type_name(kFile);
  begin_group(*command, "Model");
  add_model_flags(*command, flags->model);
  add_data_flags(*command, *flags);
  add_adapter_flags(*command, *flags);
  add_training_flags(*command, *flags);
  add_report_flags(*command, *flags);
  command->get_option("--model")->required(false)->description(
      "The model, in GGUF; needed unless --resume");
  flags->program = called;
  command->callback([flags, config, command] {
    if (!config->empty()) apply_config_file(*command, *config);
    for (const CLI::Option* option : command->get_options()) {
      if (option->count() > 0) flags->given.insert(option->get_name());
    }
    name_modules(flags->target_modules);
    require_unless_resumed(*flags, "--model");
    require_unless_resumed(*flags, "--data");
    run_finetune(*flags);
  });
}

}  // namespace graft::app
