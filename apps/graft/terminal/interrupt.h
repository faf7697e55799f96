#pragma once

namespace graft::app {

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
};

}  // namespace graft::app
