#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>
#include <utility>

namespace graft::app {

/// Writes to standard output. Unlike fmt::print it does not throw where nobody reads any more: what
/// matters of a run is in its files. The stream remembers that it failed.
void tell(std::string_view text);

template <class... Args>
void tell(fmt::format_string<Args...> format, Args&&... args) {
  tell(std::string_view(fmt::format(format, std::forward<Args>(args)...)));
}

/// One line on standard error, opening with the name of the program, whatever `message` quotes.
/// Does not throw if it cannot be written.
void warn(std::string message, std::string_view program = "graft");

}  // namespace graft::app
