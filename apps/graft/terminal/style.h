#pragma once

#include <string>
#include <string_view>

namespace graft::app {

/// Colors of a stream; none if it is no terminal, the terminal is dumb, or NO_COLOR is set
/// (https://no-color.org).
class Style {
 public:
  explicit Style(bool terminal);

  std::string strong(std::string_view text) const { return wrap("1;36", text); }
  std::string faint(std::string_view text) const { return wrap("2", text); }

 private:
  std::string wrap(std::string_view code, std::string_view text) const;

  bool colors_;
};

}  // namespace graft::app
