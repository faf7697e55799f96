#include "apps/graft/commands/command_line.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdint>
#include <memory>
#include <string>

#include "apps/graft/commands/finetune/command.h"
#include "apps/graft/commands/info.h"
#include "apps/graft/commands/model_flags.h"
#include "apps/graft/commands/number_range.h"
#include "apps/graft/commands/run_commands.h"
#include "apps/graft/commands/run_program.h"
#include "apps/graft/usage/completions.h"
#include "apps/graft/usage/man_page.h"
#include "graft/version.h"

namespace graft::app {
namespace {

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

}  // namespace

int run_command_line(int argc, char** argv) {
  CLI::App program("Fine-tunes language models with LoRA, and runs them.", "graft");
  set_up_program(program);
  add_finetune(program, argv[0]);
  add_generate(program);
  add_chat(program);
  add_evaluate(program);
  add_adapter(program);
  add_info(program);
  add_usage(program);
  return run_program(
      program, argc, argv,
      "out of memory; try --grad-checkpoint, a smaller --batch-size or --dtype bf16");
}

}  // namespace graft::app
