#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace graft::llm {

/// What a file says, fit to stand in a message: control characters, line breaks and invalid UTF-8
/// become '?', and text of more than `longest` bytes is cut off.
std::string printable(std::string_view text, std::size_t longest = 80);

}  // namespace graft::llm
