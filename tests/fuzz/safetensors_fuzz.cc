// The check of a safetensors file, before MLX reads it: the input is the file.

#include <sstream>

#include "graft/llm/weights/safetensors_header.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace graft::llm;
  using namespace graft::llm::fuzz;
  read_or_refuse([&] {
    std::istringstream in{std::string(view(data, size))};
    check_safetensors_header(in, size, kName);
  });
  return 0;
}
