#include "apps/graft/usage/man_page.h"

#include <fmt/format.h>

namespace graft::app {
namespace {

// Text that roff takes as it stands: "-" is a hyphen there, a line's first "." a request.
std::string escaped(const std::string& text) {
  std::string result;
  for (const char c : text) {
    const bool begins_line = result.empty() || result.back() == '\n';
    if (begins_line && (c == '.' || c == '\'')) result += "\\&";
    result += c == '\\' ? "\\e" : c == '-' ? "\\-" : std::string(1, c);
  }
  return result;
}

std::string flag_entry(const FlagInfo& flag) {
  std::string names = "\\fB" + escaped(flag.usage()) + "\\fR";
  for (std::size_t i = 1; i < flag.names.size(); ++i) {
    names += ", \\fB" + escaped(flag.names[i]) + "\\fR";
  }
  std::string text = flag.text;
  if (flag.required) text += " (required)";
  if (!flag.required && !flag.usual.empty()) text += " [" + flag.usual + "]";
  return ".TP\n" + names + "\n" + escaped(text) + "\n";
}

std::string section(const CommandInfo& command, const std::string& words) {
  std::string page =
      fmt::format(".SS \"{} {}\"\n{}.\n", words, command.name, escaped(command.text));
  for (const FlagInfo& flag : command.flags) {
    if (!flag.group.empty()) page += flag_entry(flag);
  }
  if (!command.footer.empty()) page += ".PP\n.nf\n" + escaped(command.footer) + "\n.fi\n";
  for (const CommandInfo& inner : command.commands) {
    page += section(inner, words + " " + command.name);
  }
  return page;
}

}  // namespace

std::string man_page(const CommandInfo& program, const std::string& version) {
  std::string page = fmt::format(
      ".TH GRAFT 1 \"\" \"graft {}\"\n.SH NAME\ngraft \\- fine-tune and run language models with "
      "LoRA\n.SH SYNOPSIS\n.B graft\n.I COMMAND\n[\\fIflags\\fR]\n.SH DESCRIPTION\n{}\n"
      ".SH COMMANDS\n",
      version, escaped(program.text));
  for (const CommandInfo& command : program.commands) page += section(command, program.name);
  return page +
         ".SH EXIT STATUS\n0; 1 if the command failed, having said why; 2 if the command line is "
         "wrong; 130 if it was interrupted.\n"
         ".SH ENVIRONMENT\n"
         ".TP\n.B GRAFT_NUM_THREADS\nThreads of the kernels, where no flag says.\n"
         ".TP\n.B GRAFT_FUSED\n0 turns every fused kernel off.\n"
         ".TP\n.B GRAFT_CPU_ISA\nA lesser instruction set than the best: see \\fBgraft info\\fR.\n";
}

}  // namespace graft::app
