#include "graft/llm/generate/stop_strings.h"

#include <algorithm>
#include <utility>

#include "graft/llm/user_error.h"

namespace graft::llm {

StopStrings::StopStrings(std::vector<std::string> stops) : stops_(std::move(stops)) {
  if (std::ranges::any_of(stops_, &std::string::empty)) {
    throw UsageError("--stop: expected a text, got an empty one");
  }
}

// The longest end of what is held that is the start of a stop string.
std::size_t StopStrings::undecided() const {
  std::size_t longest = 0;
  for (const std::string& stop : stops_) {
    for (std::size_t size = std::min(held_.size(), stop.size() - 1); size > longest; --size) {
      if (std::string_view(held_).ends_with(std::string_view(stop).substr(0, size))) longest = size;
    }
  }
  return longest;
}

std::string StopStrings::push(std::string_view piece) {
  std::string certain;
  for (const char byte : piece) {
    if (found_) break;
    held_ += byte;
    std::size_t stop_size = 0;
    for (const std::string& stop : stops_) {
      if (held_.ends_with(stop)) stop_size = std::max(stop_size, stop.size());
    }
    found_ = stop_size > 0;
    const std::size_t kept = found_ ? stop_size : undecided();
    certain += held_.substr(0, held_.size() - kept);
    held_.erase(0, held_.size() - kept);
  }
  if (found_) held_.clear();
  return certain;
}

std::string StopStrings::finish() { return std::exchange(held_, {}); }

}  // namespace graft::llm
