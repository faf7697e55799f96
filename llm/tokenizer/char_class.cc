#include "graft/llm/tokenizer/char_class.h"

#include <algorithm>
#include <array>
#include <iterator>

namespace graft::llm {
namespace {

struct Range {
  char32_t first;
  char32_t last;
  CharClass char_class;
};

// Everything but kOther, ascending. PCRE2 or ICU would not do in its place: their tables belong to
// the Unicode version of whatever system they are on (14 on Debian 12), so that one text would
// have different tokens on different machines, and on none those of `tokenizers`.
constexpr Range kRanges[] = {
#include "graft/llm/tokenizer/unicode_ranges.inc"
};

CharClass search(char32_t code_point) {
  const auto after =
      std::upper_bound(std::begin(kRanges), std::end(kRanges), code_point,
                       [](char32_t value, const Range& range) { return value < range.first; });
  if (after == std::begin(kRanges)) return CharClass::kOther;
  const Range& range = *std::prev(after);
  return code_point <= range.last ? range.char_class : CharClass::kOther;
}

constexpr char32_t kTableSize = 0x250;  // Latin

std::array<CharClass, kTableSize> make_table() {
  std::array<CharClass, kTableSize> table{};
  for (char32_t code_point = 0; code_point < kTableSize; ++code_point) {
    table[code_point] = search(code_point);
  }
  return table;
}

}  // namespace

CharClass class_of(char32_t code_point) {
  static const std::array<CharClass, kTableSize> table = make_table();
  return code_point < kTableSize ? table[code_point] : search(code_point);
}

}  // namespace graft::llm
