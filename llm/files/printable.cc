#include "graft/llm/files/printable.h"

#include "graft/llm/files/utf8.h"

namespace graft::llm {

std::string printable(std::string_view text, std::size_t longest) {
  std::string out;
  for (std::size_t at = 0; at < text.size();) {
    const Utf8Char next = first_char(text.substr(at));
    if (out.size() + next.length > longest) return out + "...";
    // C0, DEL and C1 steer terminals; U+2028 and U+2029 break lines.
    const char32_t code = next.code_point;
    const bool steers =
        code < 0x20 || (code >= 0x7F && code < 0xA0) || code == 0x2028 || code == 0x2029;
    if (next.status == Utf8Char::Status::kValid && !steers) {
      out += text.substr(at, next.length);
    } else {
      out += '?';
    }
    at += next.length;
  }
  return out;
}

}  // namespace graft::llm
