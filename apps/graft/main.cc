#include <csignal>

#include "apps/graft/commands/command_line.h"
#include "apps/graft/user_error.h"
#include "graft/llm/process/allocator.h"

int main(int argc, char** argv) {
  // A write past the limit on file sizes is then an error that says so, and not the end.
  std::signal(SIGXFSZ, SIG_IGN);
  graft::app::keep_freed_memory();
  return graft::app::run_command_line(argc, argv);
}
