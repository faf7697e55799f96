#pragma once

#include <string>

#include "apps/graft/usage/command_info.h"

namespace graft::app {

/// A script that completes the program's commands, flags and their choices in `shell`: bash, zsh or
/// fish. Where a flag takes a file, the shell completes files.
std::string completion_script(const CommandInfo& program, const std::string& shell);

}  // namespace graft::app
