// The GGUF parser, and what reads a model's sizes out of the file: the input is the file.

#include <algorithm>
#include <sstream>
#include <vector>

#include "apps/graft/model/gguf_file.h"
#include "apps/graft/model/llama_config.h"
#include "apps/graft/model/llama_tensors.h"
#include "apps/graft/tokenizer/chat_template.h"
#include "apps/graft/tokenizer/tokenizer.h"
#include "tests/fuzz/fuzz.h"

namespace graft::app::fuzz {
namespace {

void check_tensors(const GgufFile& file, std::size_t size) {
  std::vector<const GgufTensor*> order;
  for (const GgufTensor& tensor : file.tensors()) {
    require(tensor.offset <= size && tensor.bytes <= size - tensor.offset,
            "a tensor lies in the file");
    const GgmlTypeInfo& info = info_of(tensor.type);
    double elements = 1;
    for (const std::int64_t dim : tensor.shape) elements *= static_cast<double>(dim);
    require(elements / info.block_elements * info.block_bytes == static_cast<double>(tensor.bytes),
            "a tensor's bytes are those of its shape");
    order.push_back(&tensor);
  }
  std::ranges::sort(order, {}, &GgufTensor::offset);
  for (std::size_t i = 1; i < order.size(); ++i) {
    require(order[i - 1]->offset + order[i - 1]->bytes <= order[i]->offset, "tensors lie apart");
  }
}

}  // namespace
}  // namespace graft::app::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace graft::app;
  using namespace graft::app::fuzz;
  read_or_refuse([&] {
    std::istringstream in{std::string(view(data, size))};
    const GgufFile file = GgufFile::read(in, size, kName);
    check_tensors(file, size);
    read_or_refuse([&] { check_mlx_limits(file); });
    read_or_refuse([&] { check_llama_tensors(file, read_llama_config(file)); });
    read_or_refuse([&] {
      const Tokenizer tokenizer(file);
      ChatTemplate(file, tokenizer);
    });
  });
  return 0;
}
