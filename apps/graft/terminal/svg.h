#pragma once

#include <fmt/format.h>

#include <iterator>
#include <string>
#include <utility>

namespace graft::app {

/// Appends a line of formatted text.
template <class... Args>
void add_line(std::string& out, fmt::format_string<Args...> text, Args&&... args) {
  fmt::format_to(std::back_inserter(out), text, std::forward<Args>(args)...);
  out += '\n';
}

/// The beginning of a drawing of `width` × `height` pixels on paper, light or dark as the reader
/// has it. Classes paper, grid, axis and title and plain text are styled; `style` holds CSS rules
/// for the drawing's own classes, which come after and may override them. The caller ends it with
/// "</svg>".
std::string open_svg(double width, double height, const char* style);

}  // namespace graft::app
