// Against the definition: a code point's one valid form is the shortest (Unicode, section 3.9).

#include "graft/llm/files/utf8.h"

#include <gtest/gtest.h>

#include <string>

namespace graft::llm {
namespace {

bool is_scalar(char32_t code) { return code < 0xD800 || (code > 0xDFFF && code <= 0x10FFFF); }

std::string shortest_form(char32_t code) {
  const auto tail = [&](int shift) { return static_cast<char>(0x80 | (code >> shift & 0x3F)); };
  if (code < 0x80) return {static_cast<char>(code)};
  if (code < 0x800) return {static_cast<char>(0xC0 | code >> 6), tail(0)};
  if (code < 0x10000) return {static_cast<char>(0xE0 | code >> 12), tail(6), tail(0)};
  return {static_cast<char>(0xF0 | code >> 18), tail(12), tail(6), tail(0)};
}

TEST(Utf8, EveryCharacterIsReadAsItIsWritten) {
  for (char32_t code = 0; code <= 0x10FFFF; ++code) {
    const std::string text = shortest_form(code);
    const Utf8Char found = first_char(text);
    const bool valid = found.status == Utf8Char::Status::kValid;
    ASSERT_EQ(valid, is_scalar(code)) << static_cast<std::uint32_t>(code);
    if (!valid) continue;
    ASSERT_EQ(found.code_point, code);
    ASSERT_EQ(found.length, text.size());
  }
}

TEST(Utf8, NothingElseIsACharacter) {
  // Every first and second byte, then whatever goes on well: all that tells forms apart.
  for (int lead = 0x80; lead <= 0xFF; ++lead) {
    for (int second = 0; second <= 0xFF; ++second) {
      const std::string text{static_cast<char>(lead), static_cast<char>(second), '\x80', '\x80'};
      const std::size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
      char32_t code = static_cast<char32_t>(lead & (0x7F >> length));
      for (std::size_t i = 1; i < length; ++i) {
        code = code << 6 | (static_cast<std::uint8_t>(text[i]) & 0x3F);
      }
      const bool valid = is_scalar(code) && shortest_form(code) == text.substr(0, length);
      EXPECT_EQ(first_char(text).status == Utf8Char::Status::kValid, valid)
          << std::hex << lead << " " << second;
    }
  }
}

}  // namespace
}  // namespace graft::llm
