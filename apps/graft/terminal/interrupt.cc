#include "apps/graft/terminal/interrupt.h"

#include <unistd.h>

#include <cstddef>

namespace graft::app {
namespace {

// The process's, as signals are, and all that their handlers can reach. A run is watched or a
// person talked with, never both.
volatile std::sig_atomic_t interrupted = 0;

extern "C" void note_interrupt(int) { interrupted = 1; }

extern "C" void note_or_end(int signal) {
  // A terminal that is closed may say so twice.
  if (interrupted != 0 && signal != SIGHUP) ::_exit(kInterruptedStatus);
  interrupted = 1;
}

struct sigaction action_of(void (*handler)(int), int flags) {
  struct sigaction action = {};
  action.sa_handler = handler;
  action.sa_flags = flags;
  sigemptyset(&action.sa_mask);
  return action;
}

}  // namespace

InterruptWatch::InterruptWatch() {
  interrupted = 0;
  const struct sigaction action = action_of(note_or_end, SA_RESTART);
  for (std::size_t i = 0; i < kSignals.size(); ++i) {
    ::sigaction(kSignals[i], nullptr, &before_[i]);
    if (before_[i].sa_handler != SIG_IGN) ::sigaction(kSignals[i], &action, nullptr);
  }
}

InterruptWatch::~InterruptWatch() {
  for (std::size_t i = 0; i < kSignals.size(); ++i) {
    ::sigaction(kSignals[i], &before_[i], nullptr);
  }
}

bool InterruptWatch::requested() const { return interrupted != 0; }

InterruptFlag::InterruptFlag() {
  const struct sigaction action = action_of(note_interrupt, 0);  // no SA_RESTART: reads return
  ::sigaction(SIGINT, &action, &before_);
}

InterruptFlag::~InterruptFlag() { ::sigaction(SIGINT, &before_, nullptr); }

bool InterruptFlag::raised() { return interrupted != 0; }

void InterruptFlag::lower() { interrupted = 0; }

}  // namespace graft::app
