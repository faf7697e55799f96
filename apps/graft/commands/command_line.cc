#include "apps/graft/commands/command_line.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "apps/graft/commands/bench_lora.h"
#include "apps/graft/commands/bench_plan.h"
#include "apps/graft/commands/finetune.h"
#include "apps/graft/commands/info.h"
#include "apps/graft/commands/model_flags.h"
#include "apps/graft/commands/run_commands.h"
#include "apps/graft/input/printable.h"
#include "apps/graft/train/interrupt.h"
#include "apps/graft/usage/completions.h"
#include "apps/graft/usage/help.h"
#include "apps/graft/usage/man_page.h"
#include "graft/lora.h"
#include "graft/version.h"

namespace graft::app {
namespace {

constexpr int kUsage = 2;

constexpr const char* kPlanHelp =
    R"(First table: y = scaling*(x@A@B), float32, 512 -> 512 features, over batch 1, 4,
16, sequence 32, 128, 512 and rank 4, 8, 16, 32. Second table: other ops, at a
few shapes. Times are medians in microseconds a call:
  unfused   x@A, then (.)@B, then *scaling, each evaluated on its own: three
            launches, three waits
  fused     Graft's op in one eval; for y, a FusedLoRAOp made once and applied
  MLX       MLX's own ops in one graph and one eval: the fastest of the plain
            orders and the same through mx::compile; of softmax and the norms,
            MLX's one op
  speed-up  unfused / fused; the plan asks 6x to 10x
  of MLX    fused / MLX; the plan asks 95% to 110%
  fused*    a call's share of 4 to 32 independent calls in one graph and one
            eval, where waiting for the device counts once; MLX* alike, and then
            fused* / MLX*
Inputs rotate. Nothing is called fused where composed ops ran, or where the
result differs from MLX's: a dash stands there, and the reason below the table.
In the first table that ends in an error.)";

// One line, whatever the message quotes or whoever wrote it.
int fail(std::string message, int status = 1) {
  constexpr std::size_t kLongest = 1000;
  std::ranges::replace(message, '\n', ' ');
  fmt::print(stderr, "graft: {}\n", printable(message, kLongest));
  return status;
}

void add_adapter_flags(CLI::App& command, FinetuneFlags& flags) {
  begin_group(command, "Adapter");
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
      ->default_str("all");
  command.add_option("--init-adapter", flags.init_adapter,
                     "Folder of an adapter to start from; its rank, alpha and modules count");
  command
      .add_option("--resume-adapter-file", flags.resume_adapter_file,
                  "File of adapter weights to start from, with a fresh optimizer; an "
                  "adapter_config.json beside it says their rank, alpha and modules")
      ->excludes("--init-adapter");
}

void add_training_flags(CLI::App& command, FinetuneFlags& flags) {
  begin_group(command, "Training");
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
  command.add_flag("--grad-checkpoint", flags.grad_checkpoint,
                   "Compute each layer's activations again for its gradients instead of keeping "
                   "them: less memory, more time, the same losses");
}

void add_data_flags(CLI::App& command, FinetuneFlags& flags) {
  begin_group(command, "Data");
  command.add_option(
      "--data", flags.data,
      "Folder with train.jsonl and perhaps valid.jsonl: a line each with text, or prompt "
      "and completion, or messages; needed unless --resume");
  command
      .add_option(
          "--max-seq-length", flags.max_seq_length,
          "Cut longer samples off, in tokens, and chats after an answer; the model's context "
          "is the limit")
      ->check(CLI::Range(2, 1 << 20))
      ->capture_default_str();
  command.add_flag("--mask-prompt", flags.mask_prompt,
                   "Train on answers alone, not on what they answer");
}

void add_report_flags(CLI::App& command, FinetuneFlags& flags) {
  begin_group(command, "Output");
  command
      .add_option("--adapter-path", flags.adapter_path,
                  "Folder for the adapter, its checkpoints, metrics.jsonl and loss.svg")
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
  command
      .add_option("--save-every", flags.loop.save_every,
                  "Iterations a save, of the adapter and a numbered checkpoint; 0 saves at the end "
                  "only")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command.add_flag(
      "--resume", flags.resume,
      "Go on from the last checkpoint in --adapter-path; flags left out are taken from "
      "it");
  command.add_option("--record-batches", flags.record_batches,
                     "File for the tokens and targets of every batch, a JSON line each, so that "
                     "another program can train on the same");
  command.add_flag("--require-fused", flags.require_fused,
                   "Fail if an adapted projection ran unfused, forward or backward");
}

// A resumed run has these from its checkpoint.
void require_unless_resumed(const FinetuneFlags& flags, const char* name) {
  if (!flags.resume && !flags.given.contains(name)) throw CLI::RequiredError(name);
}

void add_finetune(CLI::App& program, const char* name) {
  const auto flags = std::make_shared<FinetuneFlags>();
  CLI::App* command = program.add_subcommand("finetune", "Train a LoRA adapter for a model");
  begin_group(*command, "Model");
  add_model_flags(*command, flags->model);
  add_data_flags(*command, *flags);
  add_adapter_flags(*command, *flags);
  add_training_flags(*command, *flags);
  add_report_flags(*command, *flags);
  command->get_option("--model")->required(false)->description(
      "The model, a GGUF file; needed unless --resume");
  flags->program = name;
  command->callback([flags, command] {
    for (const CLI::Option* option : command->get_options()) {
      if (option->count() > 0) flags->given.insert(option->get_name());
    }
    require_unless_resumed(*flags, "--model");
    require_unless_resumed(*flags, "--data");
    run_finetune(*flags);
  });
}

void add_info(CLI::App& program) {
  const auto flags = std::make_shared<InfoFlags>();
  CLI::App* command =
      program.add_subcommand("info", "Say what this build, this machine and a model can do");
  command->add_option("--model", flags->model, "A GGUF file: what of it runs fused, and why not");
  add_dtype_flag(*command, flags->dtype, "How base weights would be kept");
  command->add_option("--rank", flags->rank, "Rank of the adapter")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->callback([flags] { run_info(*flags); });
}

void add_measurement_flags(CLI::App& command, MeasurementFlags& flags) {
  add_threads_flag(command, flags.threads);
  command.add_option("--rounds", flags.rounds, "Times that each way of computing takes its turn")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command.add_option("--block-ms", flags.block_ms, "Milliseconds of a turn, or one call if longer")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command
      .add_option("--rotate-mb", flags.rotate_mb,
                  "Megabytes of inputs to go round; usually twice the cores' own caches, and 0 "
                  "measures one set that stays in them")
      ->check(CLI::Range(0.0, 4096.0));
  command.add_flag("--quick", flags.quick, "A few small shapes only");
  command.add_option("--csv", flags.csv, "Write the results to this file");
}

void add_bench_lora(CLI::App& bench) {
  const auto flags = std::make_shared<BenchLoraFlags>();
  CLI::App* command = bench.add_subcommand(
      "lora", "Fused LoRA against OpenBLAS calls and against MLX's own ops, in one run");
  add_dtype_flag(*command, flags->dtype, "Element type of all tensors");
  command->add_option("--dropout", flags->dropout, "Of the rows with dropout; 0 leaves them out")
      ->check(CLI::Range(0.0, 0.99))
      ->capture_default_str();
  add_measurement_flags(*command, *flags);
  command
      ->add_option("--filter", flags->filter,
                   "Only cases with this word (or words, all of them): plan, grid, model, wide, "
                   "linear, lora_delta, lora_linear, forward, r8, dropout0, 4x128x576>1536, ...")
      ->take_all();
  command->add_option("--svg", flags->svg, "Write a plot of the overheads to this file");
  command->callback([flags] { run_bench_lora(*flags); });
}

void add_bench_plan(CLI::App& bench) {
  const auto flags = std::make_shared<BenchPlanFlags>();
  CLI::App* command = bench.add_subcommand(
      "plan", "Fused ops against MLX's own through MLX's eval, on a GPU or the CPU");
  command->add_option("--device", flags->device, "Where MLX runs them")
      ->check(CLI::IsMember({"gpu", "cpu"}))
      ->capture_default_str();
  add_measurement_flags(*command, *flags);
  command->footer(kPlanHelp);
  command->callback([flags] { run_bench_plan(*flags); });
}

void add_usage(CLI::App& program) {
  const auto shell = std::make_shared<std::string>();
  CLI::App* completions =
      program.add_subcommand("completions", "Print a shell's completion script");
  completions->add_option("shell", *shell, "bash, zsh or fish")
      ->check(CLI::IsMember({"bash", "zsh", "fish"}))
      ->required();
  completions->callback(
      [&program, shell] { fmt::print("{}", completion_script(command_info(program), *shell)); });
  CLI::App* man = program.add_subcommand("man", "Print the manual page, for man -l -");
  man->callback([&program] { fmt::print("{}", man_page(command_info(program), kVersion)); });
}

void add_bench(CLI::App& program) {
  CLI::App* bench = program.add_subcommand("bench", "Measure this machine's speed");
  bench->require_subcommand(1);
  add_bench_lora(*bench);
  add_bench_plan(*bench);
}

}  // namespace

int run_command_line(int argc, char** argv) {
  CLI::App program("Fine-tunes language models with LoRA, and runs them.", "graft");
  program.set_version_flag("--version", graft::kVersion);
  program.set_help_flag("--help,-h", "Print this help and exit");
  program.formatter(help_formatter());
  program.require_subcommand(1);
  program.footer("`graft <command> --help` lists a command's flags.");
  add_finetune(program, argv[0]);
  add_generate(program);
  add_chat(program);
  add_evaluate(program);
  add_adapter(program);
  add_info(program);
  add_bench(program);
  add_usage(program);

  try {
    program.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return program.exit(error);
    return fail(std::string(error.what()) + "; --help lists the flags", kUsage);
  } catch (const Interrupted& interrupted) {
    return fail(interrupted.what(), kInterruptedStatus);
  } catch (const std::bad_alloc&) {
    return fail("out of memory; try a smaller --batch-size or --dtype bf16");
  } catch (const std::exception& error) {
    return fail(error.what());
  }
  return 0;
}

}  // namespace graft::app
