// Writes the tiny model for tests that are not C++: write_tiny_model FILE

#include "tests/support/tiny_model.h"

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  graft::app::testing::TinyModel().write(argv[1]);
}
