#pragma once

#include <CLI/CLI.hpp>

namespace graft::app {

// Declare the commands that run a model, and that keep its adapters, with their flags.

void add_generate(CLI::App& program);
void add_chat(CLI::App& program);
void add_evaluate(CLI::App& program);
void add_adapter(CLI::App& program);

}  // namespace graft::app
