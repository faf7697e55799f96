#include "graft/llm/files/utf8.h"

#include <cstdint>

namespace graft::llm {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

}  // namespace

Utf8Char first_char(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(text[i]); };
  const std::uint8_t lead = byte(0);
  if (lead < 0x80) return {Utf8Char::Status::kValid, lead, 1};
  if (lead < 0xC2 || lead > 0xF4) return {Utf8Char::Status::kInvalid, 0, 1};

  const std::size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  char32_t code_point = lead & (0x7Fu >> length);
  for (std::size_t i = 1; i < length; ++i) {
    if (i == text.size()) return {Utf8Char::Status::kIncomplete, 0, i};
    std::uint8_t low = 0x80, high = 0xBF;
    if (i == 1) {
      // No overlong forms, no surrogates, nothing past U+10FFFF (Unicode, table 3-7).
      if (lead == 0xE0) low = 0xA0;
      if (lead == 0xED) high = 0x9F;
      if (lead == 0xF0) low = 0x90;
      if (lead == 0xF4) high = 0x8F;
    }
    if (byte(i) < low || byte(i) > high) return {Utf8Char::Status::kInvalid, 0, i};
    code_point = code_point << 6 | (byte(i) & 0x3Fu);
  }
  return {Utf8Char::Status::kValid, code_point, length};
}

std::size_t find_invalid_utf8(std::string_view text) {
  std::size_t at = 0;
  while (at < text.size()) {
    const Utf8Char next = first_char(text.substr(at));
    if (next.status != Utf8Char::Status::kValid) return at;
    at += next.length;
  }
  return std::string_view::npos;
}

std::string Utf8Stream::push(std::string_view bytes) {
  held_ += bytes;
  std::string text;
  std::size_t at = 0;
  while (at < held_.size()) {
    const Utf8Char next = first_char(std::string_view(held_).substr(at));
    if (next.status == Utf8Char::Status::kIncomplete) break;
    if (next.status == Utf8Char::Status::kValid) {
      text.append(held_, at, next.length);
    } else {
      text += kReplacement;
    }
    at += next.length;
  }
  held_.erase(0, at);
  return text;
}

std::string Utf8Stream::finish() {
  const bool held = !held_.empty();
  held_.clear();
  return std::string(held ? kReplacement : "");
}

}  // namespace graft::llm
