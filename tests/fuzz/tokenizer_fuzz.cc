// A tokenizer and a chat template made of hostile data, and text that goes through them.

#include <fuzzer/FuzzedDataProvider.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <optional>

#include "graft/llm/chat/chat_template.h"
#include "graft/llm/tokenizer/tokenizer.h"
#include "tests/fuzz/fuzz.h"
#include "tests/llm/tokenizer/tiny_tokenizer.h"

namespace graft::llm::fuzz {
namespace {

constexpr std::size_t kMaxEntries = 64;
constexpr std::size_t kMaxBytes = 300;

// A vocabulary of nothing but the input's entries, or one with all bytes in it.
testing::TinyTokenizer consume_tokenizer(FuzzedDataProvider& input, bool& has_all_bytes) {
  testing::TinyTokenizer tiny;
  has_all_bytes = input.ConsumeBool();
  if (!has_all_bytes) {
    tiny.tokens.clear();
    tiny.types.clear();
    tiny.merges.clear();
  }
  tiny.eos = input.ConsumeIntegralInRange<std::uint32_t>(0, 300);
  if (input.ConsumeBool()) tiny.chat_template = input.ConsumeRandomLengthString();
  for (auto left = input.ConsumeIntegralInRange<std::size_t>(0, kMaxEntries); left-- > 0;) {
    tiny.tokens.push_back(input.ConsumeRandomLengthString(kMaxBytes));
    tiny.types.push_back(input.ConsumeIntegralInRange<std::int32_t>(0, 6));
  }
  for (auto left = input.ConsumeIntegralInRange<std::size_t>(0, kMaxEntries); left-- > 0;) {
    tiny.merges.push_back(input.ConsumeRandomLengthString(kMaxBytes));
  }
  return tiny;
}

// Special tokens stand for their text, unless it is written in the stand-ins for bytes.
bool specials_are_plain(const testing::TinyTokenizer& tiny) {
  for (std::size_t i = 0; i < tiny.tokens.size(); ++i) {
    const bool special = tiny.types[i] == 3 || tiny.types[i] == 4;
    if (special && token_bytes(tiny.tokens[i]) != tiny.tokens[i]) return false;
  }
  return true;
}

void check_round_trip(const Tokenizer& tokenizer, const std::string& text, bool is_lossless) {
  const std::vector<PlacedToken> placed = tokenizer.encode_placed(text);
  std::vector<std::int32_t> ids;
  for (const PlacedToken& token : placed) {
    require(token.id >= 0 && token.id < tokenizer.vocab_size(), "tokens are of the vocabulary");
    require(token.begin < text.size(), "tokens lie in the text");
    ids.push_back(token.id);
  }
  require(std::ranges::is_sorted(placed, {}, &PlacedToken::begin), "tokens lie in order");
  const std::string decoded = tokenizer.decode(ids, /*skip_special=*/false);
  require(find_invalid_utf8(decoded) == std::string::npos, "what is decoded is text");
  if (is_lossless) require(decoded == text, "text comes back as it was");
}

void check_chat(const GgufFile& file, const Tokenizer& tokenizer, const std::string& text) {
  const ChatTemplate chat(file, tokenizer);
  const std::vector<Message> messages = {{"user", text}, {"assistant", text}};
  const ChatTokens tokens = chat.encode(tokenizer, messages);
  require(tokens.tokens.size() == tokens.is_target.size(), "every token is a target or none");
  require(tokens.tokens.empty() || !tokens.is_target[0], "a chat starts with the template");
}

}  // namespace
}  // namespace graft::llm::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace graft::llm;
  using namespace graft::llm::fuzz;
  FuzzedDataProvider input(data, size);
  bool has_all_bytes = false;
  const testing::TinyTokenizer tiny = consume_tokenizer(input, has_all_bytes);
  const GgufFile file = tiny.file();
  std::optional<Tokenizer> tokenizer;
  try {
    tokenizer.emplace(file);
  } catch (const UserError&) {
    return 0;
  }
  const std::string text = input.ConsumeRemainingBytesAsString();
  std::vector<std::int32_t> all(static_cast<std::size_t>(tokenizer->vocab_size()));
  std::iota(all.begin(), all.end(), 0);
  require(find_invalid_utf8(tokenizer->decode(all)) == std::string::npos,
          "what is decoded is text");
  if (find_invalid_utf8(text) != std::string::npos) {
    bool refused = false;
    try {
      tokenizer->encode(text);
    } catch (const UserError&) {
      refused = true;
    }
    require(refused, "what is not text is refused");
    return 0;
  }
  check_round_trip(*tokenizer, text, has_all_bytes && specials_are_plain(tiny));
  try {
    check_chat(file, *tokenizer, text);
  } catch (const UserError&) {  // Of a template that is not ChatML.
  }
  return 0;
}
