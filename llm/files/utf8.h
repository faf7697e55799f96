#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "graft/export.h"

namespace graft::llm {

/// What some programs write in front of a text, of which it is no part.
inline constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

/// The first character of a byte sequence.
struct Utf8Char {
  enum class Status {
    kValid,
    kInvalid,     ///< `length` bytes that no continuation can make valid.
    kIncomplete,  ///< All of the text: the start of a character whose rest is missing.
  };
  Status status;
  char32_t code_point;  ///< If valid.
  std::size_t length;   ///< At least 1. If not valid, the "maximal subpart" (Unicode, ch. 3.9).
};

/// `text` must not be empty.
GRAFT_EXPORT Utf8Char first_char(std::string_view text);

/// Position of the first byte that is not part of valid UTF-8, or npos.
GRAFT_EXPORT std::size_t find_invalid_utf8(std::string_view text);

/// Turns bytes that arrive in pieces into valid UTF-8: the start of a character is held back until
/// its rest arrives, and what can't become a character is replaced by U+FFFD, once for each maximal
/// subpart.
class GRAFT_EXPORT Utf8Stream {
 public:
  /// The text that `bytes` completes.
  std::string push(std::string_view bytes);
  /// What was held back, as U+FFFD; the stream is then empty.
  std::string finish();

 private:
  std::string held_;
};

}  // namespace graft::llm
