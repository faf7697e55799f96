#pragma once

#include <csignal>
#include <stdexcept>
#include <string>

namespace graft::app {

/// What the shell says of a program that Ctrl-C ended.
inline constexpr int kInterruptedStatus = 130;

/// The user ended a run before its time; the message is one line that says how to go on.
class Interrupted : public std::runtime_error {
 public:
  explicit Interrupted(const std::string& message) : std::runtime_error(message) {}
};

/// While one lives, a first SIGINT (Ctrl-C) or SIGTERM asks the run to end in good order, and a
/// second one ends the program at once with status 130.
class InterruptWatch {
 public:
  InterruptWatch();
  ~InterruptWatch();
  InterruptWatch(const InterruptWatch&) = delete;
  InterruptWatch& operator=(const InterruptWatch&) = delete;

  bool requested() const;

 private:
  struct sigaction old_int_ {};
  struct sigaction old_term_ {};
};

}  // namespace graft::app
