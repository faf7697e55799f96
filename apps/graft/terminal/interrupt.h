#pragma once

#include <array>
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

/// While one lives, a first SIGINT (Ctrl-C), SIGTERM or SIGHUP (the terminal was closed) asks the
/// run to end in good order, and then one of the former two ends the program at once with status
/// 130. A signal that was ignored, as by nohup, stays so.
class InterruptWatch {
 public:
  InterruptWatch();
  ~InterruptWatch();
  InterruptWatch(const InterruptWatch&) = delete;
  InterruptWatch& operator=(const InterruptWatch&) = delete;

  bool requested() const;

 private:
  static constexpr std::array<int, 3> kSignals{SIGINT, SIGTERM, SIGHUP};

  std::array<struct sigaction, kSignals.size()> before_{};
};

/// While one of these lives, Ctrl-C (SIGINT) raises a flag and does not end the program. Calls that
/// wait for input return early.
class InterruptFlag {
 public:
  InterruptFlag();
  ~InterruptFlag();
  InterruptFlag(const InterruptFlag&) = delete;
  InterruptFlag& operator=(const InterruptFlag&) = delete;

  static bool raised();
  static void lower();

 private:
  struct sigaction before_ = {};
};

}  // namespace graft::app
