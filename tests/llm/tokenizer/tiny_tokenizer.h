#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "graft/llm/tokenizer/byte_pairs.h"
#include "tests/llm/weights/gguf_builder.h"

namespace graft::llm::testing {

inline constexpr std::string_view kSmolTemplate =
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// The metadata of a tokenizer: three special tokens, 256 bytes (the token of byte b is 3 + b), and
/// four merges that make "hello" (262) out of its letters.
struct TinyTokenizer {
  std::string model = "gpt2";
  std::string pre = "smollm";
  std::string chat_template = std::string(kSmolTemplate);  ///< Left out if empty.
  bool add_bos = false;
  std::uint32_t eos = 2;
  std::vector<std::string> tokens = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
  std::vector<std::string> merges = {"h e", "l l", "he ll", "hell o"};
  std::vector<std::int32_t> types = {3, 3, 3};

  TinyTokenizer() {
    for (int byte = 0; byte < 256; ++byte) {
      tokens.push_back(byte_symbol(static_cast<std::uint8_t>(byte)));
      types.push_back(1);
    }
    for (const char* merged : {"he", "ll", "hell", "hello"}) {
      tokens.emplace_back(merged);
      types.push_back(1);
    }
  }

  GgufFile file() const { return builder().parse(); }

  GgufBuilder builder() const {
    GgufBuilder builder;
    builder.text("tokenizer.ggml.model", model)
        .text("tokenizer.ggml.pre", pre)
        .boolean("tokenizer.ggml.add_bos_token", add_bos)
        .uint32("tokenizer.ggml.eos_token_id", eos)
        .strings("tokenizer.ggml.tokens", tokens)
        .strings("tokenizer.ggml.merges", merges)
        .int32s("tokenizer.ggml.token_type", types);
    if (!chat_template.empty()) builder.text("tokenizer.chat_template", chat_template);
    return builder;
  }
};

}  // namespace graft::llm::testing
