#include "tests/support/tiny_model.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>

#include "mlx/io.h"
#include "mlx/ops.h"
#include "mlx/random.h"
#include "mlx/transforms.h"

namespace graft::llm::testing {
namespace {

const std::vector<std::string> kSpecials = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};

constexpr const char* kChatMl =
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ "
    "'<|im_start|>assistant\n' }}{% endif %}";

std::string utf8(unsigned code_point) {
  if (code_point < 0x80) return {static_cast<char>(code_point)};
  return {static_cast<char>(0xC0 | code_point >> 6), static_cast<char>(0x80 | (code_point & 0x3F))};
}

// GPT-2's names for bytes: themselves where printable, else the code points from 256 on in order.
std::vector<std::string> byte_tokens() {
  std::vector<std::string> tokens;
  unsigned next = 256;
  for (unsigned byte = 0; byte < 256; ++byte) {
    const bool printable =
        (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    tokens.push_back(utf8(printable ? byte : next++));
  }
  return tokens;
}

mx::array scalar(int value) { return mx::array(static_cast<std::uint32_t>(value), mx::uint32); }

}  // namespace

int TinyModel::vocab_size() const {
  return static_cast<int>(kSpecials.size() + 256 + merges.size());
}

std::unordered_map<std::string, mx::array> TinyModel::tensors() const {
  mx::random::KeySequence keys(seed);
  std::unordered_map<std::string, mx::array> tensors;
  const auto matrix = [&](const std::string& name, int rows, int columns, float deviation) {
    tensors.emplace(name + ".weight",
                    mx::random::normal({rows, columns}, mx::float32, 0.0f, deviation, keys.next()));
  };
  const auto norm = [&](const std::string& name) {
    tensors.emplace(name + ".weight",
                    mx::random::uniform(0.5f, 1.5f, {hidden_size}, mx::float32, keys.next()));
  };
  matrix("token_embd", vocab_size(), hidden_size, 0.5f);
  norm("output_norm");
  const int kv_size = num_kv_heads * head_dim();
  for (int layer = 0; layer < num_layers; ++layer) {
    const std::string prefix = "blk." + std::to_string(layer) + ".";
    norm(prefix + "attn_norm");
    norm(prefix + "ffn_norm");
    matrix(prefix + "attn_q", hidden_size, hidden_size, 0.3f);
    matrix(prefix + "attn_k", kv_size, hidden_size, 0.3f);
    matrix(prefix + "attn_v", kv_size, hidden_size, 0.2f);
    matrix(prefix + "attn_output", hidden_size, hidden_size, 0.2f);
    matrix(prefix + "ffn_gate", intermediate_size, hidden_size, 0.2f);
    matrix(prefix + "ffn_up", intermediate_size, hidden_size, 0.2f);
    matrix(prefix + "ffn_down", hidden_size, intermediate_size, 0.2f);
  }
  for (auto& [name, tensor] : tensors) mx::eval(tensor);
  return tensors;
}

void TinyModel::write(const std::string& path) const {
  std::vector<std::string> tokens = kSpecials;
  const std::vector<std::string> bytes = byte_tokens();
  tokens.insert(tokens.end(), bytes.begin(), bytes.end());
  for (std::string merge : merges) tokens.push_back(merge.erase(merge.find(' '), 1));
  std::vector<std::int32_t> types(tokens.size(), 1);
  for (std::size_t i = 0; i < kSpecials.size(); ++i) types[i] = 3;  // control

  std::unordered_map<std::string, mx::GGUFMetaData> metadata;
  metadata["general.architecture"] = std::string("llama");
  metadata["general.name"] = std::string("Tiny");
  metadata["llama.block_count"] = scalar(num_layers);
  metadata["llama.embedding_length"] = scalar(hidden_size);
  metadata["llama.feed_forward_length"] = scalar(intermediate_size);
  metadata["llama.attention.head_count"] = scalar(num_heads);
  metadata["llama.attention.head_count_kv"] = scalar(num_kv_heads);
  metadata["llama.context_length"] = scalar(context_length);
  metadata["llama.rope.freq_base"] = mx::array(rope_theta);
  if (rope_scaling_factor != 1.0f) {
    metadata["llama.rope.scaling.factor"] = mx::array(rope_scaling_factor);
  }
  metadata["llama.attention.layer_norm_rms_epsilon"] = mx::array(rms_norm_eps);
  metadata["tokenizer.ggml.model"] = std::string("gpt2");
  metadata["tokenizer.ggml.pre"] = std::string("smollm");
  metadata["tokenizer.ggml.tokens"] = tokens;
  metadata["tokenizer.ggml.merges"] = merges;
  metadata["tokenizer.ggml.token_type"] =
      mx::array(types.data(), {static_cast<int>(types.size())}, mx::int32);
  metadata["tokenizer.ggml.bos_token_id"] = scalar(1);  // transformers asks for it
  metadata["tokenizer.ggml.eos_token_id"] = scalar(2);
  metadata["tokenizer.chat_template"] = std::string(kChatMl);
  mx::save_gguf(path, tensors(), metadata);
}

TemporaryFolder::TemporaryFolder() {
  std::string pattern = (std::filesystem::temp_directory_path() / "graft_test_XXXXXX").string();
  if (!::mkdtemp(pattern.data())) throw std::runtime_error("cannot make a temporary folder");
  path_ = pattern;
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

void write_text(const std::string& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary);
  out << text;
  if (!out.flush()) throw std::runtime_error("cannot write " + path);
}

std::string read_text(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error("cannot read " + path);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

}  // namespace graft::llm::testing
