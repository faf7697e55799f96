#include "graft/llm/tokenizer/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include "graft/llm/files/printable.h"
#include "graft/llm/tokenizer/pre_tokenizer.h"
#include "graft/llm/user_error.h"

namespace graft::llm {
namespace {

// llama.cpp's token types, as GGUF stores them.
constexpr std::int64_t kControl = 3;
constexpr std::int64_t kUserDefined = 4;

constexpr std::size_t kMaxCachedWords = 65536;
constexpr std::size_t kMaxCachedBytes = 64;  // Of one word.

// Looking for special tokens tries every length that one has at every position.
constexpr std::size_t kMaxSpecialBytes = 256;

// Keys that say how text becomes tokens, and what they are for here; one that is not known could
// change all of them.
void check_keys(const GgufFile& file) {
  constexpr std::string_view kPrefix = "tokenizer.ggml.";
  constexpr std::array<std::string_view, 29> kKnown = {
      // Used or checked.
      "model", "pre", "tokens", "token_type", "merges", "bos_token_id", "eos_token_id",
      "eot_token_id", "eom_token_id", "padding_token_id", "add_bos_token", "add_eos_token",
      "add_sep_token", "add_space_prefix",
      // Of other kinds of tokenizers, or for uses that Graft has none of: a byte is never unknown,
      // merges make scores needless, and nothing is masked, classified or filled in.
      "scores", "unknown_token_id", "seperator_token_id", "separator_token_id", "cls_token_id",
      "mask_token_id", "prefix_token_id", "suffix_token_id", "middle_token_id", "fim_pre_token_id",
      "fim_suf_token_id", "fim_mid_token_id", "fim_pad_token_id", "fim_rep_token_id",
      "fim_sep_token_id"};
  std::string unknown;
  for (const auto& [key, value] : file.metadata()) {
    if (!key.starts_with(kPrefix)) continue;
    const std::string_view name = std::string_view(key).substr(kPrefix.size());
    if (std::ranges::find(kKnown, name) != kKnown.end()) continue;
    if (unknown.empty() || key < unknown) unknown = key;  // always the same one
  }
  if (unknown.empty()) return;
  throw UserError(fmt::format("{}: metadata '{}' is not known to Graft and could change the tokens",
                              file.name(), unknown));
}

// What is asked before the vocabulary is read, so that a file of another kind is refused by name.
const std::vector<std::string>& vocabulary_of(const GgufFile& file) {
  const std::string& model = file.get_string("tokenizer.ggml.model");
  if (model != "gpt2") {
    throw UserError(fmt::format("{}: tokenizer '{}' is not supported, only byte-level BPE ('gpt2')",
                                file.name(), printable(model)));
  }
  const std::string* pre = file.find_string("tokenizer.ggml.pre");
  if (!pre || *pre != "smollm") {
    throw UserError(fmt::format("{}: pre-tokenizer '{}' is not supported, only 'smollm'",
                                file.name(), pre ? printable(*pre) : "(none)"));
  }
  check_keys(file);
  for (const char* key : {"tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token",
                          "tokenizer.ggml.add_sep_token", "tokenizer.ggml.add_space_prefix"}) {
    if (file.find_bool(key).value_or(false)) {
      throw UserError(
          fmt::format("{}: metadata '{}' is true, which is not supported", file.name(), key));
    }
  }
  const std::vector<std::string>& tokens = file.get_strings("tokenizer.ggml.tokens");
  if (tokens.empty() || tokens.size() > std::numeric_limits<std::int32_t>::max()) {
    throw UserError(fmt::format("{}: a vocabulary of {} tokens", file.name(), tokens.size()));
  }
  return tokens;
}

std::optional<std::int32_t> find_id(const GgufFile& file, const std::string& key,
                                    std::size_t vocab_size) {
  const auto id = file.find_unsigned(key);
  if (!id) return std::nullopt;
  if (*id >= vocab_size) {
    throw UserError(fmt::format("{}: metadata '{}' is {}, outside the vocabulary of {}",
                                file.name(), key, *id, vocab_size));
  }
  return static_cast<std::int32_t>(*id);
}

}  // namespace

Tokenizer::Tokenizer(const GgufFile& file)
    : pairs_(vocabulary_of(file), file.get_strings("tokenizer.ggml.merges"), file.name()) {
  const std::vector<std::string>& vocabulary = vocabulary_of(file);
  for (const std::string& entry : vocabulary) bytes_.push_back(token_bytes(entry));
  add_specials(file, vocabulary);

  bos_ = find_id(file, "tokenizer.ggml.bos_token_id", vocabulary.size());
  const auto eos = find_id(file, "tokenizer.ggml.eos_token_id", vocabulary.size());
  if (!eos) throw UserError(file.name() + ": metadata 'tokenizer.ggml.eos_token_id' is missing");
  eos_ = *eos;
  pad_ = find_id(file, "tokenizer.ggml.padding_token_id", vocabulary.size()).value_or(eos_);
  ends_ = {eos_};
  const auto eot = find_id(file, "tokenizer.ggml.eot_token_id", vocabulary.size());
  const auto eom = find_id(file, "tokenizer.ggml.eom_token_id", vocabulary.size());
  for (const auto& end : {eot, eom, find_special("<|im_end|>"), find_special("<|endoftext|>")}) {
    if (end) ends_.push_back(*end);
  }
}

void Tokenizer::add_specials(const GgufFile& file, const std::vector<std::string>& vocabulary) {
  const auto types = file.find_integers("tokenizer.ggml.token_type");
  if (!types || types->size() != vocabulary.size()) {
    throw UserError(
        fmt::format("{}: metadata 'tokenizer.ggml.token_type': {} entries for {} tokens",
                    file.name(), types ? types->size() : 0, vocabulary.size()));
  }
  is_special_.resize(vocabulary.size());
  for (std::size_t i = 0; i < vocabulary.size(); ++i) {
    const std::int64_t type = (*types)[i];
    is_special_[i] = type == kControl;
    if (type != kControl && type != kUserDefined) continue;
    if (vocabulary[i].empty()) {
      throw UserError(fmt::format("{}: special token {} has no text", file.name(), i));
    }
    if (vocabulary[i].size() > kMaxSpecialBytes) {
      throw UserError(fmt::format("{}: special token {} has {} bytes, expected at most {}",
                                  file.name(), i, vocabulary[i].size(), kMaxSpecialBytes));
    }
    specials_.emplace(vocabulary[i], static_cast<std::int32_t>(i));
    special_lengths_.insert(vocabulary[i].size());
    starts_special_[static_cast<std::uint8_t>(vocabulary[i][0])] = true;
  }
}

const Tokenizer::Special* Tokenizer::special_at(std::string_view text, std::size_t free) const {
  if (!starts_special_[static_cast<std::uint8_t>(text[0])]) return nullptr;
  for (const std::size_t length : special_lengths_) {
    if (length > text.size()) continue;
    const auto found = specials_.find(std::string(text.substr(0, length)));
    if (found == specials_.end()) continue;
    if (length <= free || !is_special(found->second)) return &*found;
  }
  return nullptr;
}

std::vector<PlacedToken> Tokenizer::encode_placed(std::string_view text,
                                                  std::span<const TextPart> plain) const {
  if (const std::size_t at = find_invalid_utf8(text); at != std::string_view::npos) {
    throw UserError(fmt::format("text is not valid UTF-8 at byte {}", at));
  }
  std::vector<PlacedToken> tokens;
  std::size_t ordinary = 0;  // Where the text since the last special token starts.
  for (std::size_t at = 0; at < text.size();) {
    while (!plain.empty() && plain.front().end <= at) plain = plain.subspan(1);
    const std::size_t wall = plain.empty() ? text.size() : plain.front().begin;
    const Special* special = special_at(text.substr(at), wall > at ? wall - at : 0);
    if (!special) {
      ++at;
      continue;
    }
    encode_ordinary(text.substr(ordinary, at - ordinary), ordinary, tokens);
    tokens.push_back({special->second, at});
    at += special->first.size();
    ordinary = at;
  }
  encode_ordinary(text.substr(ordinary), ordinary, tokens);
  return tokens;
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text, ControlTokens written) const {
  const TextPart all{0, text.size()};
  const std::span<const TextPart> plain(&all, written == ControlTokens::kText ? 1 : 0);
  std::vector<std::int32_t> ids;
  for (const PlacedToken& token : encode_placed(text, plain)) ids.push_back(token.id);
  return ids;
}

void Tokenizer::encode_ordinary(std::string_view text, std::size_t begin,
                                std::vector<PlacedToken>& tokens) const {
  const std::lock_guard lock(cache_mutex_);
  split_smollm(text, [&](std::string_view word) {
    const std::size_t at = begin + static_cast<std::size_t>(word.data() - text.data());
    if (word.size() > kMaxCachedBytes) return pairs_.encode(word, at, tokens);
    auto cached = cache_.find(std::string(word));
    if (cached == cache_.end()) {
      if (cache_.size() == kMaxCachedWords) cache_.clear();
      std::vector<PlacedToken> parts;
      pairs_.encode(word, 0, parts);
      cached = cache_.emplace(word, std::move(parts)).first;
    }
    for (const PlacedToken& part : cached->second) tokens.push_back({part.id, at + part.begin});
  });
}

const std::string& Tokenizer::bytes(std::int32_t token) const {
  if (token < 0 || token >= vocab_size()) {
    throw UserError(fmt::format("token {} is outside the vocabulary of {}", token, vocab_size()));
  }
  return bytes_[static_cast<std::size_t>(token)];
}

bool Tokenizer::is_special(std::int32_t token) const {
  return token >= 0 && token < vocab_size() && is_special_[static_cast<std::size_t>(token)];
}

std::string Tokenizer::decode(std::span<const std::int32_t> tokens, bool skip_special) const {
  TextStream stream(*this, skip_special);
  std::string text;
  for (const std::int32_t token : tokens) text += stream.push(token);
  return text + stream.finish();
}

std::optional<std::int32_t> Tokenizer::find_special(std::string_view text) const {
  const auto found = specials_.find(std::string(text));
  if (found == specials_.end()) return std::nullopt;
  return found->second;
}

bool Tokenizer::ends_generation(std::int32_t token) const {
  return std::find(ends_.begin(), ends_.end(), token) != ends_.end();
}

std::string TextStream::push(std::int32_t token) {
  const std::string& bytes = tokenizer_.bytes(token);
  if (skip_special_ && tokenizer_.is_special(token)) return {};
  return utf8_.push(bytes);
}

}  // namespace graft::llm
