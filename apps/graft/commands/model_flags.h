#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "apps/graft/commands/common.h"

namespace graft::app {

// Flags that several commands declare.

void add_dtype_flag(CLI::App& command, std::string& dtype, const std::string& help);
void add_threads_flag(CLI::App& command, int& threads);
void add_model_flags(CLI::App& command, ModelFlags& flags);

}  // namespace graft::app
