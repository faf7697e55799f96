#pragma once

#include <string>

namespace CLI {
class App;
}

namespace graft::app {

// Each adds one command with its flags to the program. Reading the command line then runs the
// command that it names, which throws UserError, and Interrupted if the user ended it.

/// `called` is what the user called the program, for the command that goes on with a run.
void add_finetune(CLI::App& program, const std::string& called);
void add_generate(CLI::App& program);
void add_chat(CLI::App& program);
void add_evaluate(CLI::App& program);
void add_adapter(CLI::App& program);
void add_info(CLI::App& program);
void add_completions(CLI::App& program);
void add_man(CLI::App& program);

}  // namespace graft::app
