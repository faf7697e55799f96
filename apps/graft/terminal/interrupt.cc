#include "apps/graft/terminal/interrupt.h"

#include <csignal>

namespace graft::app {
namespace {

volatile std::sig_atomic_t interrupts = 0;
struct sigaction action_before;

extern "C" void note_interrupt(int) { interrupts = 1; }

}  // namespace

InterruptFlag::InterruptFlag() {
  struct sigaction action = {};
  action.sa_handler = note_interrupt;
  sigemptyset(&action.sa_mask);
  action.sa_flags = 0;  // no SA_RESTART: reads are to return
  ::sigaction(SIGINT, &action, &action_before);
}

InterruptFlag::~InterruptFlag() { ::sigaction(SIGINT, &action_before, nullptr); }

bool InterruptFlag::raised() { return interrupts != 0; }

void InterruptFlag::lower() { interrupts = 0; }

}  // namespace graft::app
