#include "apps/graft/commands/command_line.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <iostream>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "apps/graft/commands/bench_lora.h"
#include "apps/graft/commands/bench_plan.h"
#include "apps/graft/commands/finetune_command.h"
#include "apps/graft/commands/info.h"
#include "apps/graft/commands/model_flags.h"
#include "apps/graft/commands/number_range.h"
#include "apps/graft/commands/run_commands.h"
#include "apps/graft/terminal/tell.h"
#include "apps/graft/usage/completions.h"
#include "apps/graft/usage/help.h"
#include "apps/graft/usage/man_page.h"
#include "apps/graft/user_error.h"
#include "graft/llm/train/interrupt.h"
#include "graft/version.h"

namespace graft::app {
namespace {

constexpr int kUsage = 2;
constexpr const char* kOutputLost =
    "the output could not all be written; see whether the disk is full, or who reads it";

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

int fail(std::string message, int status = 1) {
  warn(std::move(message));
  return status;
}

void add_info(CLI::App& program) {
  const auto flags = std::make_shared<InfoFlags>();
  CLI::App* command =
      program.add_subcommand("info", "Say what this build, this machine and a model can do");
  command
      ->add_option("--model", flags->model, "A model, in GGUF: what of it runs fused, and why not")
      ->type_name(kFile);
  add_dtype_flag(*command, flags->dtype, "How base weights would be kept");
  command->add_option("--rank", flags->rank, "Rank of the adapter")
      ->check(at_least<std::int64_t>(1))
      ->capture_default_str();
  command->callback([flags] { run_info(*flags); });
}

void add_measurement_flags(CLI::App& command, MeasurementFlags& flags) {
  add_threads_flag(command, flags.threads);
  command.add_option("--rounds", flags.rounds, "Times that each way of computing takes its turn")
      ->check(at_least(1))
      ->capture_default_str();
  command.add_option("--block-ms", flags.block_ms, "Milliseconds of a turn, or one call if longer")
      ->check(above(0.0))
      ->capture_default_str();
  command
      .add_option("--rotate-mb", flags.rotate_mb,
                  "Megabytes of inputs to go round; usually twice the cores' own caches, and 0 "
                  "measures one set that stays in them")
      ->check(between(0.0, 4096.0));
  command.add_flag("--quick", flags.quick, "A few small shapes only");
  command.add_option("--csv", flags.csv, "Write the results to this file")->type_name(kFile);
}

void add_bench_lora(CLI::App& bench) {
  const auto flags = std::make_shared<BenchLoraFlags>();
  CLI::App* command = bench.add_subcommand(
      "lora", "Fused LoRA against OpenBLAS calls and against MLX's own ops, in one run");
  add_dtype_flag(*command, flags->dtype, "Element type of all tensors");
  command->add_option("--dropout", flags->dropout, "Of the rows with dropout; 0 leaves them out")
      ->check(between(0.0f, 0.99f))
      ->capture_default_str();
  add_measurement_flags(*command, *flags);
  command
      ->add_option("--filter", flags->filter,
                   "Only cases with this word (or words, all of them): plan, grid, model, wide, "
                   "linear, lora_delta, lora_linear, forward, r8, dropout0, 4x128x576>1536, ...")
      ->take_all();
  command->add_option("--svg", flags->svg, "Write a plot of the overheads to this file")
      ->type_name(kFile);
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
    if (error.get_exit_code() != 0) {
      return fail(std::string(error.what()) + "; --help lists the flags", kUsage);
    }
    program.exit(error);  // prints what --help or --version asks for
    std::cout.flush();
  } catch (const UsageError& error) {
    return fail(error.what(), kUsage);
  } catch (const Interrupted& interrupted) {
    return fail(interrupted.what(), kInterruptedStatus);
  } catch (const std::bad_alloc&) {
    return fail("out of memory; try --grad-checkpoint, a smaller --batch-size or --dtype bf16");
  } catch (const UserError& error) {
    return fail(error.what());
  } catch (const std::exception& error) {
    return fail(std::ferror(stdout) != 0 ? kOutputLost : error.what());
  }
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) return fail(kOutputLost);
  return 0;
}

}  // namespace graft::app
