#pragma once

namespace graft::app {

/// Runs the command that the command line names. Returns the program's exit status: 0, 1 if the
/// command failed or 2 if the command line is wrong, having said why on stderr.
///
/// All flags of all commands are declared in its source, finetune_command.cc and run_commands.cc,
/// with what they share in model_flags.cc and config_file.cc. CLI11 takes longer to compile than
/// most commands, so these take plain structs.
int run_command_line(int argc, char** argv);

}  // namespace graft::app
