#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <new>

#include "apps/graft/allocator.h"
#include "apps/graft/commands/commands.h"
#include "apps/graft/user_error.h"
#include "graft/version.h"

namespace {

constexpr int kUsage = 2;

int fail(const char* message) {
  fmt::print(stderr, "graft: {}\n", message);
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  graft::app::keep_freed_memory();
  CLI::App program("Fine-tunes language models with LoRA, and runs them.", "graft");
  program.set_version_flag("--version", graft::kVersion);
  program.set_help_flag("--help,-h", "Print this help and exit");
  program.require_subcommand(1);
  program.footer("`graft <command> --help` lists a command's flags.");
  graft::app::add_finetune(program);
  graft::app::add_generate(program);
  graft::app::add_evaluate(program);
  graft::app::add_info(program);
  graft::app::add_bench(program);

  try {
    program.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return program.exit(error) == 0 ? 0 : kUsage;
  } catch (const std::bad_alloc&) {
    return fail("out of memory; try a smaller --batch-size or --dtype bf16");
  } catch (const std::exception& error) {
    return fail(error.what());
  }
  return 0;
}
