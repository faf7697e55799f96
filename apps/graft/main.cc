#include <CLI/CLI.hpp>

#include "apps/graft/commands/commands.h"
#include "apps/graft/commands/run_program.h"

int main(int argc, char** argv) {
  namespace app = graft::app;
  CLI::App program("Fine-tunes language models with LoRA, and runs them.", "graft");
  app::set_up_program(program);
  app::add_finetune(program, argv[0]);
  app::add_generate(program);
  app::add_chat(program);
  app::add_evaluate(program);
  app::add_adapter(program);
  app::add_info(program);
  app::add_completions(program);
  app::add_man(program);
  return app::run_program(
      program, argc, argv,
      "out of memory; try --grad-checkpoint, a smaller --batch-size or --dtype bf16");
}
