#include "apps/graft/allocator.h"
#include "apps/graft/commands/command_line.h"

int main(int argc, char** argv) {
  graft::app::keep_freed_memory();
  return graft::app::run_command_line(argc, argv);
}
