#include "graft/llm/tokenizer/byte_pairs.h"

#include <fmt/format.h>

#include <queue>
#include <tuple>

#include "graft/llm/files/utf8.h"
#include "graft/llm/user_error.h"

namespace graft::llm {
namespace {

// Bytes that GPT-2 writes as the character of the same number; the others, in order, as U+0100 and
// on (encoder.py of the GPT-2 release, bytes_to_unicode).
constexpr bool writes_itself(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

struct ByteAlphabet {
  std::array<std::string, 256> symbols;
  std::unordered_map<char32_t, char> bytes;

  ByteAlphabet() {
    int next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const int code_point = writes_itself(byte) ? byte : next++;
      std::string& symbol = symbols[static_cast<std::size_t>(byte)];
      if (code_point < 0x80) {
        symbol = static_cast<char>(code_point);
      } else {
        symbol = {static_cast<char>(0xC0 | code_point >> 6),
                  static_cast<char>(0x80 | (code_point & 0x3F))};
      }
      bytes.emplace(static_cast<char32_t>(code_point), static_cast<char>(byte));
    }
  }
};

const ByteAlphabet& byte_alphabet() {
  static const ByteAlphabet alphabet;
  return alphabet;
}

std::uint64_t pair_key(std::int32_t left, std::int32_t right) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
         static_cast<std::uint32_t>(right);
}

}  // namespace

const std::string& byte_symbol(std::uint8_t byte) { return byte_alphabet().symbols[byte]; }

std::string token_bytes(std::string_view entry) {
  const auto& bytes = byte_alphabet().bytes;
  std::string out;
  for (std::size_t at = 0; at < entry.size();) {
    const Utf8Char next = first_char(entry.substr(at));
    const auto byte = bytes.find(next.code_point);
    if (next.status != Utf8Char::Status::kValid || byte == bytes.end()) return std::string(entry);
    out += byte->second;
    at += next.length;
  }
  return out;
}

BytePairs::BytePairs(const std::vector<std::string>& vocabulary,
                     const std::vector<std::string>& merges, const std::string& name) {
  ids_.reserve(vocabulary.size());
  for (std::size_t i = 0; i < vocabulary.size(); ++i) {
    if (find_invalid_utf8(vocabulary[i]) != std::string::npos) {
      throw UserError(fmt::format("{}: token {} is not valid UTF-8", name, i));
    }
    if (!ids_.emplace(vocabulary[i], static_cast<std::int32_t>(i)).second) {
      throw UserError(
          fmt::format("{}: tokens {} and {} are the same", name, ids_.at(vocabulary[i]), i));
    }
  }
  for (std::size_t byte = 0; byte < byte_ids_.size(); ++byte) {
    byte_ids_[byte] = find(byte_symbol(static_cast<std::uint8_t>(byte)));
  }
  merges_.reserve(merges.size());
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    const std::string_view merge = merges[rank];
    const std::size_t space = merge.find(' ');
    if (space == std::string_view::npos || merge.find(' ', space + 1) != std::string_view::npos) {
      throw UserError(fmt::format("{}: merge {} is not two tokens and a space", name, rank));
    }
    const std::string left(merge.substr(0, space)), right(merge.substr(space + 1));
    const std::int32_t left_id = find(left), right_id = find(right), id = find(left + right);
    if (left_id < 0 || right_id < 0 || id < 0) {
      throw UserError(fmt::format("{}: merge {} is of tokens that do not exist", name, rank));
    }
    merges_.insert_or_assign(pair_key(left_id, right_id),
                             Merge{static_cast<std::int32_t>(rank), id});
  }
}

std::int32_t BytePairs::find(std::string_view entry) const {
  const auto found = ids_.find(std::string(entry));
  return found == ids_.end() ? -1 : found->second;
}

const BytePairs::Merge* BytePairs::find_merge(std::int32_t left, std::int32_t right) const {
  const auto found = merges_.find(pair_key(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

void BytePairs::encode(std::string_view word, std::size_t begin,
                       std::vector<PlacedToken>& tokens) const {
  // A doubly linked list of symbols; a merged-away one has id -1. The queue holds candidates
  // (rank, position of the left symbol, merged id); one is stale if its pair no longer makes that
  // id. A word of n bytes takes O(n log n).
  struct Symbol {
    std::int32_t id;
    std::size_t begin;
    int previous;
    int next;
  };
  std::vector<Symbol> symbols;
  symbols.reserve(word.size());
  for (std::size_t i = 0; i < word.size(); ++i) {
    const std::int32_t id = byte_ids_[static_cast<std::uint8_t>(word[i])];
    if (id < 0) continue;
    const int at = static_cast<int>(symbols.size());
    if (at > 0) symbols.back().next = at;
    symbols.push_back({id, begin + i, at - 1, -1});
  }

  using Candidate = std::tuple<std::int32_t, int, std::int32_t>;
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto symbol = [&](int at) -> Symbol& { return symbols[static_cast<std::size_t>(at)]; };
  const auto offer = [&](int left) {
    if (left < 0 || symbol(left).next < 0) return;
    const Merge* merge = find_merge(symbol(left).id, symbol(symbol(left).next).id);
    if (merge) queue.emplace(merge->rank, left, merge->id);
  };
  for (int i = 0; i < static_cast<int>(symbols.size()); ++i) offer(i);

  while (!queue.empty()) {
    const auto [rank, at, id] = queue.top();
    queue.pop();
    Symbol& left = symbol(at);
    if (left.id < 0 || left.next < 0) continue;
    Symbol& right = symbol(left.next);
    const Merge* merge = find_merge(left.id, right.id);
    if (!merge || merge->id != id) continue;
    left.id = id;
    left.next = right.next;
    if (right.next >= 0) symbol(right.next).previous = at;
    right.id = -1;
    offer(left.previous);
    offer(at);
  }
  for (const Symbol& left : symbols) {
    if (left.id >= 0) tokens.push_back({left.id, left.begin});
  }
}

}  // namespace graft::llm
