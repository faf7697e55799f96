#pragma once

#include <string>

namespace graft::app {

/// Lines from a terminal or a pipe, with word of Ctrl-C where an InterruptFlag lives.
class LineReader {
 public:
  enum class Event {
    kLine,
    kDiscarded,    ///< Ctrl-C took back what was typed.
    kInterrupted,  ///< Ctrl-C, with nothing typed.
    kEnd,
  };

  explicit LineReader(int fd) : fd_(fd) {}

  /// Puts the next line, without its end, into `line`.
  Event read(std::string& line);

 private:
  bool take_line(std::string& line);

  int fd_;
  std::string buffer_;
  bool ended_ = false;
};

}  // namespace graft::app
