#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace graft::app {

/// What every program of this tree has: --help in one form, --version, commands of which one must
/// be given; and as a process, freed memory that is kept (see keep_freed_memory), and an error
/// where a file would grow past its limit. Called before commands are added, which inherit it.
void set_up_program(CLI::App& program);

/// Reads the command line and thereby runs the command that it names. Returns the program's exit
/// status: 0, 1 if the command failed or 2 if the command line is wrong, having said why in a line
/// on stderr that opens with the program's name. `out_of_memory` is that line where memory ran out.
int run_program(CLI::App& program, int argc, char** argv, const std::string& out_of_memory);

}  // namespace graft::app
