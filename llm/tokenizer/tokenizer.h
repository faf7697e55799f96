#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "graft/export.h"
#include "graft/llm/files/utf8.h"
#include "graft/llm/tokenizer/byte_pairs.h"
#include "graft/llm/weights/gguf_file.h"

namespace graft::llm {

/// What a control token such as "<|im_end|>" is where text has it written out.
enum class ControlTokens : std::uint8_t { kParsed, kText };

/// Bytes [begin, end) of a text.
struct TextPart {
  std::size_t begin;
  std::size_t end;
};

/// Byte-level BPE from the metadata of a GGUF file, equal token for token to Hugging Face
/// `tokenizers` on the tokenizer that the file was made from. May be shared by threads.
class GRAFT_EXPORT Tokenizer {
 public:
  /// Throws UserError if the file's tokenizer is malformed or of another kind.
  explicit Tokenizer(const GgufFile& file);

  std::int32_t vocab_size() const { return static_cast<std::int32_t>(bytes_.size()); }

  /// The tokens of `text`; none are added. A control token written in it counts as such, or is
  /// text like any other (Hugging Face's split_special_tokens). Throws UserError if `text` is not
  /// valid UTF-8.
  std::vector<std::int32_t> encode(std::string_view text,
                                   ControlTokens written = ControlTokens::kParsed) const;

  /// The same, with where each token begins. What is written in `plain` parts, ascending, is text:
  /// a control token counts only where it shares no byte with them.
  std::vector<PlacedToken> encode_placed(std::string_view text,
                                         std::span<const TextPart> plain = {}) const;

  /// The text of `tokens`. Bytes that are not valid UTF-8 become U+FFFD. Throws UserError for a
  /// token outside the vocabulary.
  std::string decode(std::span<const std::int32_t> tokens, bool skip_special = true) const;

  /// The bytes of one token: possibly a part of a character.
  const std::string& bytes(std::int32_t token) const;
  bool is_special(std::int32_t token) const;

  /// The id of a special token by its text, such as "<|im_end|>".
  std::optional<std::int32_t> find_special(std::string_view text) const;

  std::optional<std::int32_t> bos() const { return bos_; }
  std::int32_t eos() const { return eos_; }
  std::int32_t pad() const { return pad_; }  ///< The end-of-sequence token if there is none.

  /// Whether generation ends at `token`: end of sequence, of turn or of text.
  bool ends_generation(std::int32_t token) const;

 private:
  using Special = std::pair<const std::string, std::int32_t>;  // Text and id.

  void add_specials(const GgufFile& file, const std::vector<std::string>& vocabulary);
  // The longest at the start of `text`; a control token has at most `free` bytes.
  const Special* special_at(std::string_view text, std::size_t free) const;
  void encode_ordinary(std::string_view text, std::size_t begin,
                       std::vector<PlacedToken>& tokens) const;

  BytePairs pairs_;
  std::vector<std::string> bytes_;  // By id.
  std::vector<bool> is_special_;    // By id: control tokens, which decoding leaves out.
  // What is split out of text first, the longest that fits.
  std::unordered_map<std::string, std::int32_t> specials_;
  std::set<std::size_t, std::greater<>> special_lengths_;
  std::vector<bool> starts_special_ = std::vector<bool>(256);  // By first byte.
  std::optional<std::int32_t> bos_;
  std::int32_t eos_ = 0;
  std::int32_t pad_ = 0;
  std::vector<std::int32_t> ends_;

  // Words seen before, positions relative to the word.
  mutable std::mutex cache_mutex_;
  mutable std::unordered_map<std::string, std::vector<PlacedToken>> cache_;
};

/// Decodes tokens as they come, never splitting a character.
class GRAFT_EXPORT TextStream {
 public:
  explicit TextStream(const Tokenizer& tokenizer, bool skip_special = true)
      : tokenizer_(tokenizer), skip_special_(skip_special) {}

  /// The text that `token` completes; may be empty.
  std::string push(std::int32_t token);
  /// What was held back, as U+FFFD.
  std::string finish() { return utf8_.finish(); }

 private:
  const Tokenizer& tokenizer_;
  bool skip_special_;
  Utf8Stream utf8_;
};

}  // namespace graft::llm
