// completions and man: what the program says of itself for shells and for man.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "apps/graft/commands/commands.h"
#include "apps/graft/usage/completions.h"
#include "apps/graft/usage/man_page.h"
#include "graft/version.h"

namespace graft::app {

void add_completions(CLI::App& program) {
  const auto shell = std::make_shared<std::string>();
  CLI::App* command = program.add_subcommand("completions", "Print a shell's completion script");
  command->add_option("shell", *shell, "bash, zsh or fish")
      ->check(CLI::IsMember({"bash", "zsh", "fish"}))
      ->required();
  command->callback(
      [&program, shell] { fmt::print("{}", completion_script(command_info(program), *shell)); });
}

void add_man(CLI::App& program) {
  CLI::App* command = program.add_subcommand("man", "Print the manual page, for man -l -");
  command->callback([&program] { fmt::print("{}", man_page(command_info(program), kVersion)); });
}

}  // namespace graft::app
