#pragma once

#include <string>
#include <string_view>

namespace graft::app {

/// Text in lines of at most `width` columns, cut between words where there are any; taken to be one
/// column a character. Line breaks in it stay. It begins in column `indent`, and so does each line
/// after the first.
std::string wrapped(std::string_view text, int width, int indent = 0);

}  // namespace graft::app
