#pragma once

namespace graft::app {

/// Runs the command that the command line names. Returns the program's exit status: 0, 1 if the
/// command failed or 2 if the command line is wrong, having said why on stderr.
///
/// All flags of all commands are declared in its source and in run_commands.cc, the only ones that
/// need CLI11 (which takes longer to compile than most commands); the commands take plain structs.
int run_command_line(int argc, char** argv);

}  // namespace graft::app
