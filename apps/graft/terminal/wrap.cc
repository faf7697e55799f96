#include "apps/graft/terminal/wrap.h"

#include <algorithm>
#include <cstddef>

namespace graft::app {

std::string wrapped(std::string_view text, int width, int indent) {
  const auto room = static_cast<std::size_t>(std::max(width - indent, 1));
  const std::string line_break = "\n" + std::string(static_cast<std::size_t>(indent), ' ');
  std::string out;
  std::size_t column = 0;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find_first_of(" \n"), text.size());
    const std::string_view word = text.substr(0, end);
    if (column > 0 && column + word.size() > room) {
      if (out.ends_with(' ')) out.pop_back();
      out += line_break;
      column = 0;
    }
    out += word;
    column += word.size();
    if (end == text.size()) break;
    if (text[end] == '\n') {
      out += line_break;
      column = 0;
    } else {
      out += ' ';
      ++column;
    }
    text.remove_prefix(end + 1);
  }
  return out;
}

}  // namespace graft::app
