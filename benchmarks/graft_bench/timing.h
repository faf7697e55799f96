#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "benchmarks/graft_bench/arithmetic.h"

namespace graft::bench {

/// One way to compute a case.
struct Candidate {
  std::string name;
  bool uses_blas = false;                ///< Runs the BLAS's threads, not Graft's.
  std::function<void(std::size_t)> run;  ///< One call, on the set of inputs with this index.
};

/// Times candidates against each other, in µs a call.
///
/// In each round every candidate gets a block of consecutive calls, after one that is not counted
/// and that wakes its threads. Rounds go through the candidates forwards and backwards in turn, so
/// that a machine that slows down or speeds up favours none.
///
/// An idle BLAS keeps its threads spinning, OpenBLAS for some 26 ms (2²⁶ ticks, unless
/// OPENBLAS_THREAD_TIMEOUT says otherwise), and they would take cores away from Graft. So
/// candidates with the BLAS stand together, and when Graft's turn comes after them, all wait until
/// those threads are asleep. Within their blocks they spin as they always do: waking is not charged
/// to them. Graft's own idle threads spin for 0.2 ms, and are waited for too.
class Stopwatch {
 public:
  Stopwatch(int rounds, double block_ms) : rounds_(rounds), block_ms_(block_ms) {}

  /// One timing for each candidate; `sets` are gone round.
  std::vector<Timing> measure(const std::vector<Candidate>& candidates, std::size_t sets);

 private:
  void rest_before(const Candidate& next);
  std::vector<double> run_block(const Candidate& candidate, std::size_t sets, bool is_long);

  int rounds_;
  double block_ms_;
  std::size_t calls_ = 0;
  bool ran_ = false;  // a block, whose kind is the next line
  bool last_used_blas_ = false;
};

}  // namespace graft::bench
