// The reader of JSON lines, with a tokenizer and a chat template that are fine: the first byte says
// how, the rest is the file.

#include <sstream>

#include "graft/llm/data/batches.h"
#include "graft/llm/data/dataset.h"
#include "tests/fuzz/fuzz.h"
#include "tests/llm/tokenizer/tiny_tokenizer.h"

namespace graft::llm::fuzz {
namespace {

void check_sample(const Sample& sample, const DataOptions& options, const Tokenizer& tokenizer) {
  require(sample.tokens.size() == sample.is_target.size(), "every token is a target or none");
  require(sample.tokens.size() >= 2, "a sample has something to predict");
  require(static_cast<std::int64_t>(sample.tokens.size()) <= options.max_seq_length,
          "a sample is no longer than asked");
  for (const std::int32_t token : sample.tokens) {
    require(token >= 0 && token < tokenizer.vocab_size(), "tokens are of the vocabulary");
  }
}

}  // namespace
}  // namespace graft::llm::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace graft::llm;
  using namespace graft::llm::fuzz;
  static const GgufFile file = testing::TinyTokenizer().file();
  static const Tokenizer tokenizer(file);
  if (size == 0) return 0;
  const DataOptions options{.max_seq_length = 2 + (data[0] & 0x7F), .mask_prompt = data[0] >= 0x80};
  read_or_refuse([&] {
    std::istringstream in{std::string(view(data + 1, size - 1))};
    const Dataset dataset = read_dataset(in, kName, file, tokenizer, options);
    require(!dataset.samples.empty(), "a dataset has samples");
    for (const Sample& sample : dataset.samples) check_sample(sample, options, tokenizer);
    Batches batches(dataset.samples, {.batch_size = 3});
    require(batches.at(0).num_targets > 0, "a batch has targets");
  });
  return 0;
}
