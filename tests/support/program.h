#pragma once

#include <sys/wait.h>

#include <cstdlib>
#include <string>

#include "tests/support/tiny_model.h"

namespace graft::llm::testing {

/// How a run of the program ended, and what it printed.
struct Outcome {
  int status;  ///< -1 if a signal ended it.
  std::string out;
  std::string err;
};

/// Runs `graft` with these words of a shell and `input` on its standard input. Files that this
/// needs, and the registry of adapters, are in `folder`. The words may send its output elsewhere.
inline Outcome run_program(const TemporaryFolder& folder, const std::string& arguments,
                           const std::string& input = "") {
  write_text(folder.file("in"), input);
  // A pipe: unlike a file it can be read only once.
  const std::string command = "cat " + folder.file("in") + " | GRAFT_HOME=" + folder.file("home") +
                              " > " + folder.file("out") + " 2> " + folder.file("err") + " " +
                              GRAFT_TEST_PROGRAM + " " + arguments;
  const int status = std::system(command.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_text(folder.file("out")),
          read_text(folder.file("err"))};
}

}  // namespace graft::llm::testing
