#pragma once

#include <memory>
#include <string>

#include "apps/graft/usage/command_info.h"

namespace CLI {
class FormatterBase;
}

namespace graft::app {

/// Help on a command, `usage` being what precedes its name: flags by group, each with its default,
/// wrapped to `width` columns.
std::string help_text(const CommandInfo& command, const std::string& usage, int width);

/// What the parser prints for --help.
std::shared_ptr<CLI::FormatterBase> help_formatter();

}  // namespace graft::app
