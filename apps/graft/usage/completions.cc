#include "apps/graft/usage/completions.h"

#include <fmt/format.h>

#include <functional>
#include <vector>

namespace graft::app {
namespace {

// Each command with its words, "finetune" or "adapter add", inner ones after the outer.
void for_each_command(const CommandInfo& command, const std::string& words,
                      const std::function<void(const CommandInfo&, const std::string&)>& visit) {
  visit(command, words);
  for (const CommandInfo& inner : command.commands) {
    for_each_command(inner, words.empty() ? inner.name : words + " " + inner.name, visit);
  }
}

std::vector<std::string> words_of(const CommandInfo& command) {
  std::vector<std::string> words;
  for (const CommandInfo& inner : command.commands) words.push_back(inner.name);
  for (const FlagInfo& flag : command.flags) {
    if (!flag.is_word()) {
      words.push_back(flag.names.front());
    } else {
      words.insert(words.end(), flag.choices.begin(), flag.choices.end());
    }
  }
  return words;
}

// The words of the line that are commands pick the case; the flag before the cursor, its choices.
std::string bash(const CommandInfo& program) {
  std::string commands, choices, files;
  for_each_command(program, "", [&](const CommandInfo& command, const std::string& words) {
    commands += fmt::format("    '{}') words='{}' ;;\n", words, fmt::join(words_of(command), " "));
    for (const FlagInfo& flag : command.flags) {
      if (flag.is_word()) continue;
      const std::string place = words + " " + flag.names.front();
      if (!flag.choices.empty()) {
        choices += fmt::format("    '{}') words='{}' ;;\n", place, fmt::join(flag.choices, " "));
      } else if (!flag.value.empty()) {
        files += fmt::format("{}'{}'", files.empty() ? "" : "|", place);
      }
    }
  });
  return fmt::format(
      R"(# bash completion for graft: source it, or put it where bash-completion looks.
_graft() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD - 1]}}"
  local command= words= word
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    case "$command $word" in
      {}) command="${{command:+$command }}$word" ;;
    esac
  done
  case "$command" in
{}  esac
  case "$command $previous" in
{}    {}) words= ;;
  esac
  if [[ -n "$words" ]]; then
    COMPREPLY=($(compgen -W "$words" -- "$current"))
  else
    COMPREPLY=($(compgen -f -- "$current"))
  fi
}}
complete -o filenames -o bashdefault -F _graft graft
)",
      [&] {
        std::string patterns;
        for_each_command(program, "", [&](const CommandInfo& command, const std::string& words) {
          for (const CommandInfo& inner : command.commands) {
            patterns += fmt::format("{}'{} {}'", patterns.empty() ? "" : "|", words, inner.name);
          }
        });
        return patterns;
      }(),
      commands, choices, files);
}

// zsh runs what bash does.
std::string zsh(const CommandInfo& program) {
  return "#compdef graft\nautoload -U +X bashcompinit && bashcompinit\n" + bash(program);
}

std::string fish_quoted(std::string text) {
  for (std::size_t at = 0; (at = text.find('\'', at)) != std::string::npos; at += 2) {
    text.insert(at, "\\");
  }
  return "'" + text + "'";
}

std::string fish(const CommandInfo& program) {
  std::string script = "# fish completion for graft: put it into ~/.config/fish/completions.\n";
  for_each_command(program, "", [&](const CommandInfo& command, const std::string& words) {
    std::vector<std::string> inner_names;
    for (const CommandInfo& inner : command.commands) inner_names.push_back(inner.name);
    std::string here = words.empty() ? "__fish_use_subcommand" : "";
    std::string_view rest = words;
    while (!rest.empty()) {
      const std::string_view word = rest.substr(0, rest.find(' '));
      here += fmt::format("{}__fish_seen_subcommand_from {}", here.empty() ? "" : "; and ", word);
      rest.remove_prefix(std::min(word.size() + 1, rest.size()));
    }
    for (const CommandInfo& inner : command.commands) {
      const std::string without =
          words.empty() ? here
                        : here + fmt::format("; and not __fish_seen_subcommand_from {}",
                                             fmt::join(inner_names, " "));
      script += fmt::format("complete -c graft -f -n {} -a {} -d {}\n", fish_quoted(without),
                            inner.name, fish_quoted(inner.text));
    }
    for (const FlagInfo& flag : command.flags) {
      if (flag.is_word() && flag.choices.empty()) continue;
      if (flag.is_word()) {
        script += fmt::format("complete -c graft -f -n {} -a {}\n", fish_quoted(here),
                              fish_quoted(fmt::format("{}", fmt::join(flag.choices, " "))));
        continue;
      }
      script += fmt::format("complete -c graft -n {} -l {} -d {}", fish_quoted(here),
                            flag.names.front().substr(2), fish_quoted(flag.text));
      if (!flag.choices.empty()) {
        script +=
            fmt::format(" -x -a {}", fish_quoted(fmt::format("{}", fmt::join(flag.choices, " "))));
      } else if (!flag.value.empty()) {
        script += flag.value == "N" ? " -x" : " -r";
      }
      script += "\n";
    }
  });
  return script;
}

}  // namespace

std::string completion_script(const CommandInfo& program, const std::string& shell) {
  return shell == "fish" ? fish(program) : shell == "zsh" ? zsh(program) : bash(program);
}

}  // namespace graft::app
