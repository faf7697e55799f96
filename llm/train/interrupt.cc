#include "graft/llm/train/interrupt.h"

#include <unistd.h>

#include <cstddef>

namespace graft::llm {
namespace {

volatile std::sig_atomic_t interrupts = 0;

extern "C" void count_interrupt(int signal) {
  // A terminal that is closed may say so twice.
  if (interrupts > 0 && signal != SIGHUP) ::_exit(kInterruptedStatus);
  interrupts = 1;
}

}  // namespace

InterruptWatch::InterruptWatch() {
  interrupts = 0;
  struct sigaction action {};
  action.sa_handler = count_interrupt;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
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

bool InterruptWatch::requested() const { return interrupts > 0; }

}  // namespace graft::llm
