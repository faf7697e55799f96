#pragma once

#include <cstdint>
#include <string>

namespace graft::app {

std::string format_count(std::int64_t count);  ///< "1,234,567"
std::string format_bytes(std::int64_t bytes);  ///< "1.23 GB"
std::string format_seconds(double seconds);    ///< "4:05", "1:02:33"

/// Whether standard output is a terminal that can redraw a line.
bool stdout_is_terminal();

/// Whether the locale in the environment says that the terminal shows UTF-8.
bool terminal_is_utf8();

/// Columns of the terminal, 80 if unknown.
int terminal_width();

}  // namespace graft::app
