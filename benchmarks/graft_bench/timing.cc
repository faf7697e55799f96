#include "benchmarks/graft_bench/timing.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <numeric>
#include <thread>

namespace graft::bench {
namespace {

using Clock = std::chrono::steady_clock;

double since_us(Clock::time_point begin) {
  return std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
}

// Longer than idle threads spin: 2²⁶ ticks of OpenBLAS are 34 ms at 2 GHz.
constexpr auto kBlasFallsAsleep = std::chrono::milliseconds(35);
constexpr auto kGraftFallsAsleep = std::chrono::milliseconds(1);

// A call this long is not visibly slower for its threads' waking, and is not repeated for that.
constexpr double kLongCallUs = 5e3;

}  // namespace

std::vector<Timing> Stopwatch::measure(const std::vector<Candidate>& candidates, std::size_t sets) {
  std::vector<std::size_t> order(candidates.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_partition(order.begin(), order.end(),
                        [&](std::size_t i) { return !candidates[i].uses_blas; });

  std::vector<std::vector<std::vector<double>>> samples(candidates.size());
  for (int round = 0; round < rounds_; ++round) {
    for (const std::size_t i : order) {
      rest_before(candidates[i]);
      const bool is_long = round > 0 && samples[i].back().back() > kLongCallUs;
      samples[i].push_back(run_block(candidates[i], sets, is_long));
    }
    std::reverse(order.begin(), order.end());
  }

  std::vector<Timing> timings;
  for (const auto& rounds : samples) timings.push_back(timing_of(rounds));
  return timings;
}

void Stopwatch::rest_before(const Candidate& next) {
  if (ran_ && last_used_blas_ != next.uses_blas) {
    if (last_used_blas_) {
      std::this_thread::sleep_for(kBlasFallsAsleep);
    } else {
      std::this_thread::sleep_for(kGraftFallsAsleep);
    }
  }
  ran_ = true;
  last_used_blas_ = next.uses_blas;
}

std::vector<double> Stopwatch::run_block(const Candidate& candidate, std::size_t sets,
                                         bool is_long) {
  std::vector<double> samples;
  if (!is_long) candidate.run(calls_++ % sets);
  const Clock::time_point block = Clock::now();
  do {
    const Clock::time_point begin = Clock::now();
    candidate.run(calls_++ % sets);
    samples.push_back(since_us(begin));
  } while (since_us(block) < block_ms_ * 1e3);
  return samples;
}

}  // namespace graft::bench
