#include "apps/graft/terminal/style.h"

#include <fmt/format.h>

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

}  // namespace graft::app
