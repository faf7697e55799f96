#include "apps/graft/usage/command_info.h"

#include <CLI/CLI.hpp>
#include <algorithm>

namespace graft::app {
namespace {

// "TEXT:{f32,bf16}" has choices; other validators say their range there.
std::vector<std::string> choices_in(const std::string& type) {
  const std::size_t open = type.find('{'), close = type.find('}');
  if (open == std::string::npos || close == std::string::npos) return {};
  return CLI::detail::split(type.substr(open + 1, close - open - 1), ',');
}

std::string value_of(const std::string& type, const std::vector<std::string>& choices) {
  constexpr std::size_t kMostShown = 4;
  if (type.empty()) return "";
  if (!choices.empty() && choices.size() <= kMostShown) return CLI::detail::join(choices, "|");
  const std::string plain = type.substr(0, type.find(':'));
  return plain == "INT" || plain == "UINT" || plain == "FLOAT" ? "N" : plain;
}

FlagInfo flag_info(const CLI::Option& option) {
  FlagInfo flag;
  for (const std::string& name : option.get_lnames()) flag.names.push_back("--" + name);
  for (const std::string& name : option.get_snames()) flag.names.push_back("-" + name);
  const std::string type = option.get_type_size() == 0 ? "" : option.get_type_name();
  flag.choices = choices_in(type);
  flag.value = value_of(type, flag.choices);
  if (flag.is_word() && flag.choices.empty()) flag.value = CLI::detail::to_lower(option.get_name());
  flag.group = option.get_group();
  flag.text = option.get_description();
  flag.usual = option.get_default_str();
  flag.required = option.get_required();
  return flag;
}

}  // namespace

std::string FlagInfo::usage() const {
  if (is_word()) return value;
  return value.empty() ? names.front() : names.front() + " " + value;
}

CommandInfo command_info(const CLI::App& app) {
  CommandInfo info;
  info.name = app.get_name();
  info.text = app.get_description();
  // Commands inherit the program's, which is of no use to them.
  const CLI::App* outer = app.get_parent();
  if (outer == nullptr || outer->get_footer() != app.get_footer()) info.footer = app.get_footer();
  for (const CLI::Option* option : app.get_options()) info.flags.push_back(flag_info(*option));
  for (const CLI::App* command : app.get_subcommands(nullptr)) {
    info.commands.push_back(command_info(*command));
  }
  return info;
}

}  // namespace graft::app
