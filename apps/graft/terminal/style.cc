#include "apps/graft/terminal/style.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>

namespace graft::app {

Style::Style(bool terminal) {
  const char* no_color = std::getenv("NO_COLOR");
  colors_ = terminal && !(no_color && *no_color);
}

std::string Style::wrap(std::string_view code, std::string_view text) const {
  if (!colors_) return std::string(text);
  return fmt::format("\x1b[{}m{}\x1b[0m", code, text);
}

std::string wrapped(std::string_view text, int width) {
  const auto room = static_cast<std::size_t>(std::max(width, 1));
  std::string out;
  std::size_t column = 0;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find_first_of(" \n"), text.size());
    const std::string_view word = text.substr(0, end);
    if (column > 0 && column + word.size() > room) {
      if (out.ends_with(' ')) out.pop_back();
      out += '\n';
      column = 0;
    }
    out += word;
    column += word.size();
    if (end == text.size()) break;
    out += text[end];
    column = text[end] == '\n' ? 0 : column + 1;
    text.remove_prefix(end + 1);
  }
  return out;
}

}  // namespace graft::app
