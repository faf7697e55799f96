#pragma once

#include <gtest/gtest.h>

#include <string>

#include "graft/context.h"
#include "graft/supports.h"

namespace graft::test {

/// Runs `body` on every instruction set that this machine has, naming it in failures.
template <class Body>
void on_each_isa(Body&& body) {
  const std::string before = cpu_isa();
  for (const std::string& isa : cpu_isas()) {
    SCOPED_TRACE("instruction set " + isa);
    set_cpu_isa(isa);
    body();
  }
  set_cpu_isa(before);
}

/// Runs `body` on `threads` threads.
template <class Body>
void with_threads(int threads, Body&& body) {
  set_num_threads(threads);
  body();
  set_num_threads(0);
}

}  // namespace graft::test
