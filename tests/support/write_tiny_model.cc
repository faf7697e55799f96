// Writes the tiny model for tests that are not C++: write_tiny_model FILE [LAYERS]

#include <cstdlib>

#include "tests/support/tiny_model.h"

int main(int argc, char** argv) {
  if (argc != 2 && argc != 3) return 2;
  graft::app::testing::TinyModel model;
  if (argc == 3) model.num_layers = std::atoi(argv[2]);
  model.write(argv[1]);
}
