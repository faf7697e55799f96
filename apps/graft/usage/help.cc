#include "apps/graft/usage/help.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <string>
#include <vector>

#include "apps/graft/terminal/format.h"
#include "apps/graft/terminal/wrap.h"

namespace graft::app {
namespace {

constexpr int kColumn = 26;  // where texts begin
constexpr int kNarrowest = 40, kWidest = 100;

// A line or more: what stands left, and a text beside it or, if that is long, below.
std::string entry(const std::string& left, const std::string& text, int width) {
  const int column = std::min(kColumn, width / 2);
  const auto length = static_cast<int>(left.size());
  const std::string gap = length + 2 <= column
                              ? std::string(static_cast<std::size_t>(column - length), ' ')
                              : "\n" + std::string(static_cast<std::size_t>(column), ' ');
  return left + (text.empty() ? "" : gap + wrapped(text, width, column)) + "\n";
}

std::string flag_entry(const FlagInfo& flag, int width) {
  std::string left = "  " + flag.usage();
  for (std::size_t i = 1; i < flag.names.size(); ++i) left += ", " + flag.names[i];
  std::string text = flag.text;
  if (flag.required) {
    text += " (required)";
  } else if (!flag.usual.empty()) {
    text += " [" + flag.usual + "]";
  }
  return entry(left, text, width);
}

// In the order in which they are first used.
std::vector<std::string> groups_of(const CommandInfo& command) {
  std::vector<std::string> groups;
  for (const FlagInfo& flag : command.flags) {
    if (std::find(groups.begin(), groups.end(), flag.group) == groups.end()) {
      groups.push_back(flag.group);
    }
  }
  return groups;
}

class HelpFormatter : public CLI::FormatterBase {
 public:
  std::string make_help(const CLI::App* app, std::string, CLI::AppFormatMode) const override {
    std::string usage;
    for (const CLI::App* outer = app->get_parent(); outer != nullptr; outer = outer->get_parent()) {
      usage = outer->get_name() + " " + usage;
    }
    return help_text(command_info(*app), usage, terminal_width());
  }
};

}  // namespace

std::string help_text(const CommandInfo& command, const std::string& usage, int width) {
  width = std::clamp(width, kNarrowest, kWidest);
  std::string text = wrapped(command.text, width) + "\n\nUsage: " + usage + command.name;
  for (const FlagInfo& flag : command.flags) {
    if (flag.required) text += " " + flag.usage();
  }
  text += command.commands.empty() ? " [flags]\n" : " COMMAND ...\n";
  for (const std::string& group : groups_of(command)) {
    if (group.empty()) continue;  // hidden
    text += "\n" + group + ":\n";
    for (const FlagInfo& flag : command.flags) {
      if (flag.group == group) text += flag_entry(flag, width);
    }
  }
  if (!command.commands.empty()) text += "\nCommands:\n";
  for (const CommandInfo& inner : command.commands) {
    text += entry("  " + inner.name, inner.text, width);
  }
  return command.footer.empty() ? text : text + "\n" + command.footer + "\n";
}

std::shared_ptr<CLI::FormatterBase> help_formatter() { return std::make_shared<HelpFormatter>(); }

}  // namespace graft::app
