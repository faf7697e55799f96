#pragma once

#include <CLI/CLI.hpp>

namespace graft::app {

/// Each adds one subcommand with its flags; parsing a command line that names it runs it. Runs
/// throw UserError, or another exception for what should not happen.
void add_finetune(CLI::App& program);
void add_generate(CLI::App& program);
void add_evaluate(CLI::App& program);
void add_info(CLI::App& program);
void add_bench(CLI::App& program);

}  // namespace graft::app
