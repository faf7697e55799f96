#pragma once

#include <functional>
#include <string>

namespace graft::app {

/// Lines from a terminal or a pipe, with word of Ctrl-C where an InterruptFlag lives. A byte order
/// mark in front of them is dropped, and "\r\n" ends one as "\n" does.
class LineReader {
 public:
  enum class Event {
    kLine,
    kDiscarded,    ///< Ctrl-C took back what was typed.
    kInterrupted,  ///< Ctrl-C, with nothing typed.
    kEnd,
  };

  explicit LineReader(int fd) : fd_(fd) {}

  /// Puts the next line, without its end, into `line`. Calls `prompt`, if there is one, once it is
  /// ready: what is typed before that, Ctrl-C would throw away unseen.
  Event read(std::string& line, const std::function<void()>& prompt = {});

 private:
  bool take_line(std::string& line);

  int fd_;
  std::string buffer_;
  bool ended_ = false;
  bool is_first_ = true;  // Of the lines, the next one.
};

}  // namespace graft::app
