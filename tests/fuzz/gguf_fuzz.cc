// The GGUF parser, and what reads a model's sizes out of the file: the input is the file.

#include <algorithm>
#include <sstream>
#include <vector>

#include "graft/llm/chat/chat_template.h"
#include "graft/llm/model/llama_config.h"
#include "graft/llm/model/llama_tensors.h"
#include "graft/llm/tokenizer/tokenizer.h"
#include "graft/llm/weights/gguf_file.h"
#include "tests/fuzz/fuzz.h"

namespace graft::llm::fuzz {
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
}  // namespace graft::llm::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace graft::llm;
  using namespace graft::llm::fuzz;
  read_or_refuse([&] {
    std::istringstream in{std::string(view(data, size))};
    const GgufFile file = GgufFile::read(in, size, kName);
    check_tensors(file, size);
    read_or_refuse([&] { check_llama_tensors(file, read_llama_config(file)); });
    read_or_refuse([&] {
      const Tokenizer tokenizer(file);
      ChatTemplate(file, tokenizer);
    });
  });
  return 0;
}
