#include "apps/graft/commands/run_program.h"

#include <fmt/format.h>

#include <csignal>
#include <cstdio>
#include <exception>
#include <iostream>
#include <new>
#include <utility>

#include "apps/graft/terminal/interrupt.h"
#include "apps/graft/terminal/tell.h"
#include "apps/graft/usage/help.h"
#include "apps/graft/user_error.h"
#include "graft/llm/process/allocator.h"
#include "graft/version.h"

namespace graft::app {
namespace {

constexpr int kUsage = 2;
constexpr const char* kOutputLost =
    "the output could not all be written; see whether the disk is full, or who reads it";

}  // namespace

void set_up_program(CLI::App& program) {
  std::signal(SIGXFSZ, SIG_IGN);  // a write past the limit is then an error that says so
  keep_freed_memory();
  program.set_version_flag("--version", graft::kVersion);
  program.set_help_flag("--help,-h", "Print this help and exit");
  program.formatter(help_formatter());
  program.require_subcommand(1);
  program.footer(fmt::format("`{} <command> --help` lists a command's flags.", program.get_name()));
}

int run_program(CLI::App& program, int argc, char** argv, const std::string& out_of_memory) {
  const auto fail = [&program](std::string message, int status = 1) {
    warn(std::move(message), program.get_name());
    return status;
  };
  try {
    program.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() != 0) {
      return fail(std::string(error.what()) + "; --help lists the flags", kUsage);
    }
    program.exit(error);  // prints what --help or --version asks for
    std::cout.flush();
  } catch (const UsageError& error) {
    return fail(error.what(), kUsage);
  } catch (const Interrupted& interrupted) {
    return fail(interrupted.what(), kInterruptedStatus);
  } catch (const std::bad_alloc&) {
    return fail(out_of_memory);
  } catch (const UserError& error) {
    return fail(error.what());
  } catch (const std::exception& error) {
    return fail(std::ferror(stdout) != 0 ? kOutputLost : error.what());
  }
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) return fail(kOutputLost);
  return 0;
}

}  // namespace graft::app
