#pragma once

#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace graft::app {

/// A flag, or a word without one, as help, completions and the man page tell of it.
struct FlagInfo {
  std::vector<std::string> names;    ///< "--rank", "-h"; the longest first. None: it is a word.
  std::string value;                 ///< "N", "FILE", "f32|bf16"; "" if it takes none.
  std::vector<std::string> choices;  ///< If only these may be given.
  std::string group;                 ///< Heading it stands under.
  std::string text;                  ///< What it does.
  std::string usual;                 ///< Default; "" if there is none to tell.
  bool required = false;

  bool is_word() const { return names.empty(); }
  /// How it is given: "--rank N", "bash|zsh|fish".
  std::string usage() const;
};

/// A command with its flags and its own commands.
struct CommandInfo {
  std::string name;  ///< "graft", "finetune".
  std::string text;
  std::string footer;
  std::vector<FlagInfo> flags;
  std::vector<CommandInfo> commands;
};

/// Reads it off the parser, so that nothing is said twice.
CommandInfo command_info(const CLI::App& app);

}  // namespace graft::app
