#pragma once

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <limits>
#include <string>
#include <type_traits>

#include "graft/llm/files/printable.h"

namespace graft::app {

// Which numbers a flag takes, checked while the command line is read and said in words that a
// person can read. NaN and infinity are never among them. T is the flag's own type.

namespace detail {

// CLI11 lets numbers below 0 and above the largest pass as some other unsigned one.
template <class T>
bool wraps(const std::string& text) {
  if (!std::is_unsigned_v<T>) return false;
  errno = 0;
  std::strtoull(text.c_str(), nullptr, 0);
  return text.starts_with('-') || errno == ERANGE;
}

template <class T>
CLI::Validator number_check(const std::string& range, const std::function<bool(T)>& good) {
  const std::string kind = std::is_integral_v<T> ? "a whole number " : "a number ";
  const auto check = [=](const std::string& text) -> std::string {
    constexpr auto kLargest = std::numeric_limits<T>::max();
    const std::string got = llm::printable(text, 40);
    T value{};
    if (CLI::detail::lexical_cast(text, value) && !wraps<T>(text)) {
      if (std::isfinite(static_cast<double>(value)) && good(value)) return {};
    } else if (double number = 0; std::is_integral_v<T> &&
                                  CLI::detail::lexical_cast(text, number) &&
                                  number >= static_cast<double>(kLargest)) {
      return fmt::format("expected {}up to {}, got '{}'", kind, kLargest, got);
    }
    return fmt::format("expected {}{}, got '{}'", kind, range, got);
  };
  return {check, ""};
}

}  // namespace detail

template <class T>
CLI::Validator at_least(T least) {
  return detail::number_check<T>(fmt::format("of {} or more", least),
                                 [=](T value) { return value >= least; });
}

template <class T>
CLI::Validator above(T bound) {
  return detail::number_check<T>(fmt::format("above {}", bound),
                                 [=](T value) { return value > bound; });
}

template <class T>
CLI::Validator between(T least, T most) {
  return detail::number_check<T>(fmt::format("from {} to {}", least, most),
                                 [=](T value) { return value >= least && value <= most; });
}

/// Above `bound` and up to `most`.
template <class T>
CLI::Validator above_up_to(T bound, T most) {
  return detail::number_check<T>(fmt::format("above {} and up to {}", bound, most),
                                 [=](T value) { return value > bound && value <= most; });
}

}  // namespace graft::app
