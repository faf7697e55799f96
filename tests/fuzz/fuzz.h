#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "graft/llm/files/utf8.h"
#include "graft/llm/user_error.h"

namespace graft::llm::fuzz {

/// What stands for the file in messages.
inline const std::string kName = "some/file";

inline std::string_view view(const std::uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

/// A property that no input may break.
inline void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "broken: %s\n", what);
  std::abort();
}

/// Runs `read`, which may refuse its input, but only with one line of text that opens with the
/// file's name. Whatever else it throws ends the fuzzer.
template <class Read>
void read_or_refuse(const Read& read) {
  try {
    read();
  } catch (const UserError& error) {
    const std::string_view message = error.what();
    require(message.starts_with(kName), "a refusal opens with the file's name");
    require(message.find('\n') == std::string_view::npos, "a refusal is one line");
    require(find_invalid_utf8(message) == std::string_view::npos, "a refusal is text");
    require(message.size() < 2000, "a refusal is short");
  }
}

}  // namespace graft::llm::fuzz
