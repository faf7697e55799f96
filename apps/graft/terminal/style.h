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

/// Text in lines of at most `width` columns, cut between words where there are any; taken to be one
/// column a character.
std::string wrapped(std::string_view text, int width);

}  // namespace graft::app
