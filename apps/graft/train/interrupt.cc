#include "apps/graft/train/interrupt.h"

#include <unistd.h>

namespace graft::app {
namespace {

volatile std::sig_atomic_t interrupts = 0;

extern "C" void count_interrupt(int) {
  if (interrupts > 0) ::_exit(kInterruptedStatus);
  interrupts = 1;
}

}  // namespace

InterruptWatch::InterruptWatch() {
  interrupts = 0;
  struct sigaction action {};
  action.sa_handler = count_interrupt;
  action.sa_flags = SA_RESTART;
  ::sigemptyset(&action.sa_mask);
  ::sigaction(SIGINT, &action, &old_int_);
  ::sigaction(SIGTERM, &action, &old_term_);
}

InterruptWatch::~InterruptWatch() {
  ::sigaction(SIGINT, &old_int_, nullptr);
  ::sigaction(SIGTERM, &old_term_, nullptr);
}

bool InterruptWatch::requested() const { return interrupts > 0; }

}  // namespace graft::app
