#include "apps/graft/terminal/tell.h"

#include <algorithm>
#include <cstdio>

#include "apps/graft/user_error.h"
#include "graft/llm/files/printable.h"

namespace graft::app {
namespace {

void write(std::FILE* stream, std::string_view text) {
  // If it fails there is nobody to be told.
  [[maybe_unused]] const auto written = std::fwrite(text.data(), 1, text.size(), stream);
}

}  // namespace

void tell(std::string_view text) { write(stdout, text); }

void warn(std::string message, std::string_view program) {
  constexpr std::size_t kLongest = 1000;
  std::ranges::replace(message, '\n', ' ');
  write(stderr, fmt::format("{}: {}\n", program, printable(message, kLongest)));
}

}  // namespace graft::app
