#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "graft/export.h"

namespace graft::llm {

/// GPT-2's printable stand-in for a byte, as UTF-8: vocabularies are written in these.
GRAFT_EXPORT const std::string& byte_symbol(std::uint8_t byte);

/// The bytes that a vocabulary entry stands for; an entry with any other character in it stands for
/// its own UTF-8.
GRAFT_EXPORT std::string token_bytes(std::string_view entry);

/// A token, and the position of its first byte in the text.
struct PlacedToken {
  std::int32_t id;
  std::size_t begin;
};

/// Merges the bytes of a word into tokens (Sennrich et al., Neural Machine Translation of Rare
/// Words with Subword Units, arXiv:1508.07909): again and again the pair of neighbours that stands
/// first in the list of merges, the leftmost first.
class GRAFT_EXPORT BytePairs {
 public:
  /// `merges` hold two entries each, parted by a space. `name` stands for the file in messages.
  /// Throws UserError if an entry occurs twice, or a merge is malformed or names no entry.
  BytePairs(const std::vector<std::string>& vocabulary, const std::vector<std::string>& merges,
            const std::string& name);

  /// The id of a vocabulary entry, or -1.
  std::int32_t find(std::string_view entry) const;

  /// Appends the tokens of `word`, whose first byte is at `begin`. Bytes that the vocabulary has no
  /// entry for are left out, as `tokenizers` does without an unknown token.
  void encode(std::string_view word, std::size_t begin, std::vector<PlacedToken>& tokens) const;

 private:
  struct Merge {
    std::int32_t rank;
    std::int32_t id;
  };

  const Merge* find_merge(std::int32_t left, std::int32_t right) const;

  std::unordered_map<std::string, std::int32_t> ids_;
  std::array<std::int32_t, 256> byte_ids_;
  std::unordered_map<std::uint64_t, Merge> merges_;  // By left << 32 | right.
};

}  // namespace graft::llm
