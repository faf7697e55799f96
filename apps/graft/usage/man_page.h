#pragma once

#include <string>

#include "apps/graft/usage/command_info.h"

namespace graft::app {

/// graft(1) in roff's man macros: every command with its flags.
std::string man_page(const CommandInfo& program, const std::string& version);

}  // namespace graft::app
