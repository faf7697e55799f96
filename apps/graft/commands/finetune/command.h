#pragma once

namespace CLI {
class App;
}

namespace graft::app {

/// Adds `graft finetune` with its flags; `name` is what the user called the program.
void add_finetune(CLI::App& program, const char* name);

}  // namespace graft::app
