#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "apps/graft/commands/common.h"

namespace graft::app {

// What several commands declare.

/// What help calls the value of a flag that names something on the disk.
inline constexpr const char* kFile = "FILE";
inline constexpr const char* kFolder = "DIR";

/// Flags that are added from now on stand under this heading.
void begin_group(CLI::App& command, const std::string& heading);

void add_dtype_flag(CLI::App& command, std::string& dtype, const std::string& help);
void add_threads_flag(CLI::App& command, int& threads);
/// --parse-special; where `in` may have them, for the help.
void add_parse_special_flag(CLI::App& command, bool& parse_special, const std::string& in);

void add_model_flags(CLI::App& command, ModelFlags& flags);

}  // namespace graft::app
