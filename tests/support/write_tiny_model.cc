// Writes the tiny model for tests that are not C++:
//
//   write_tiny_model FILE [CONTEXT_LENGTH [LAYERS]]

#include <string>

#include "tests/support/tiny_model.h"

int main(int argc, char** argv) {
  if (argc < 2 || argc > 4) return 2;
  graft::llm::testing::TinyModel model;
  model.merges.emplace_back("~ ~");  // transformers takes a list of one for a string
  if (argc > 2) model.context_length = std::stoi(argv[2]);
  if (argc > 3) model.num_layers = std::stoi(argv[3]);
  model.write(argv[1]);
}
