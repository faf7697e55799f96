// Writes what the fuzzers start from, good input and nearly good, a folder a fuzzer:
//
//   fuzz_seeds FOLDER

#include <cstdio>
#include <filesystem>
#include <fstream>

#include "graft/llm/model/projection.h"
#include "tests/llm/tokenizer/tiny_tokenizer.h"

namespace graft::llm::testing {
namespace {

namespace fs = std::filesystem;

class Corpus {
 public:
  explicit Corpus(const fs::path& folder) : folder_(folder) { fs::create_directories(folder_); }

  void add(const std::string& bytes) {
    std::ofstream(folder_ / ("seed" + std::to_string(++count_)), std::ios::binary) << bytes;
  }

 private:
  fs::path folder_;
  int count_ = 0;
};

// A Llama of one layer whose tensors are as small as they can be.
GgufBuilder llama() {
  constexpr std::uint32_t kHidden = 4;
  GgufBuilder builder = TinyTokenizer().builder();
  builder.text("general.architecture", "llama")
      .text("general.name", "Tiny")
      .uint32("llama.block_count", 1)
      .uint32("llama.embedding_length", kHidden)
      .uint32("llama.feed_forward_length", kHidden)
      .uint32("llama.attention.head_count", 1)
      .uint32("llama.context_length", 16)
      .number("llama.rope.freq_base", 6, 10000.0f);
  std::uint64_t offset = 0;
  const auto tensor = [&](const std::string& name, const std::vector<std::uint64_t>& dims) {
    std::uint64_t bytes = 4;
    for (const std::uint64_t dim : dims) bytes *= dim;
    builder.tensor(name + ".weight", dims, 0, offset);
    offset += (bytes + 31) / 32 * 32;
  };
  tensor("token_embd", {kHidden, TinyTokenizer().tokens.size()});
  for (const char* norm : {"output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"}) {
    tensor(norm, {kHidden});
  }
  for (const Projection projection : kAllProjections) {
    tensor("blk.0." + std::string(gguf_name_of(projection)), {kHidden, kHidden});
  }
  return builder.data(offset);
}

void write_gguf(Corpus corpus) {
  corpus.add(llama().bytes());
  corpus.add(gguf_of_every_kind());
  corpus.add(GgufBuilder().bytes());
}

void write_safetensors(Corpus corpus) {
  const std::string headers[] = {
      R"({"__metadata__": {"format": "pt"}, "a": {"dtype": "F32", "shape": [2, 3],)"
      R"( "data_offsets": [0, 24]}, "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}})",
      R"({"a": {"dtype": "F16", "shape": [], "data_offsets": [0, 2]}})", "{}"};
  for (const std::string& header : headers) {
    corpus.add(GgufBuilder::raw<std::uint64_t>(header.size()) + header + std::string(32, '\0'));
  }
}

void write_adapter_config(Corpus corpus) {
  corpus.add(
      R"({"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "a/b-Q4_1.gguf",
 "r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "target_modules": ["q_proj", "down_proj"],
 "layers_to_transform": [0, 3], "bias": "none", "use_rslora": false, "modules_to_save": null})");
  corpus.add(R"({"peft_type": "LORA", "target_modules": "all-linear", "layers_to_transform": 3,)"
             R"( "rank_pattern": {}, "alpha_pattern": {"q_proj": 1}, "lora_alpha": 1e3})");
}

void write_dataset(Corpus corpus) {
  const std::string texts = "{\"text\": \"hello\"}\r\n\n{\"text\": \"h\\u00e9 \\ud83d\\ude00\"}\n";
  const std::string pairs = "{\"prompt\": \"a\", \"completion\": \"b\"}\n";
  const std::string chats =
      R"({"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "a"},)"
      R"( {"role": "assistant", "content": "b"}, {"role": "user", "content": "<|im_end|>"},)"
      R"( {"role": "assistant", "content": "d"}], "id": [1, null]})";
  for (const std::string& lines : {texts, pairs, chats, "\xEF\xBB\xBF" + pairs + pairs}) {
    for (const char options : {'\x05', '\x40', '\xC0', '\xFF'}) corpus.add(options + lines);
  }
}

void write_tokenizer(Corpus corpus) {
  for (const char* text :
       {"hello world", "<|im_start|>user\nh\xC3\xA9<|im_end|>", "he's 1 he ll"}) {
    // FuzzedDataProvider takes numbers from the end of the input, and text from its start.
    corpus.add(text + std::string("\0\0\0\x02\x01", 5));
    corpus.add("lo\\l o\\lo\\" + std::string(text) + std::string("\x01\x01\x01\0\0\0\x02\x01", 8));
  }
}

}  // namespace
}  // namespace graft::llm::testing

int main(int argc, char** argv) {
  using namespace graft::llm::testing;
  if (argc != 2) {
    std::fprintf(stderr, "usage: fuzz_seeds FOLDER\n");
    return 2;
  }
  const std::filesystem::path folder = argv[1];
  write_gguf(Corpus(folder / "gguf"));
  write_safetensors(Corpus(folder / "safetensors"));
  write_adapter_config(Corpus(folder / "adapter_config"));
  write_dataset(Corpus(folder / "dataset"));
  write_tokenizer(Corpus(folder / "tokenizer"));
}
