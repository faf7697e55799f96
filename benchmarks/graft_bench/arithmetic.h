#pragma once

#include <cstdint>
#include <vector>

#include "benchmarks/graft_bench/cases.h"

namespace graft::bench {

/// Floating-point operations that the case needs, a multiplication and an addition counting as two.
double flops(const Case& item);

/// Operations of the base product alone, in the same passes: x·Wᵀ, and dy·W.
double base_flops(const Case& item);

/// Bytes that the case must read or write: its inputs and outputs, each once however often passes
/// go over it, as caches might hold it meanwhile. h and g are none of them.
double bytes(const Case& item);

/// How much more arithmetic the adapter is than its base product: 0.031 is 3.1 %. An implementation
/// that multiplies as fast as its base product and does nothing else has this overhead.
double floor_overhead(const Case& item);

/// Median and spread of some measurements, linear between neighbours.
struct Spread {
  double median = 0.0;
  double p10 = 0.0;  ///< A tenth of them is lower.
  double p90 = 0.0;  ///< A tenth of them is higher.
};
Spread spread_of(std::vector<double> samples);

/// How long something took, in rounds of calls.
struct Timing : Spread {
  std::vector<double> rounds;  ///< Medians of the rounds, in order; `Spread` is of all calls.
};
Timing timing_of(const std::vector<std::vector<double>>& rounds);

/// The adapter's cost as measured, fused / base − 1: the median over rounds, in each of which both
/// were measured within milliseconds. A machine that others slow down for seconds at a time then
/// slows down both.
double overhead(const Timing& fused, const Timing& base);

/// What the machine can do at most, as measured all through the same run: the best of each.
class Machine {
 public:
  double gflops_f32 = 0.0;   ///< 10⁹ operations a second out of registers.
  double gflops_bf16 = 0.0;  ///< The same for bfloat16 products; float32's where they are widened.
  double launch_us = 0.0;    ///< A call of the core that has next to nothing to do, µs.

  double gflops(const Case& item) const { return item.bf16 ? gflops_bf16 : gflops_f32; }

  /// 10⁹ bytes a second were moved, going round in `bytes`.
  void add_moved(double bytes, double gbs) { moved_.push_back({bytes, gbs}); }
  /// The most that were moved going round in so many bytes, or in more: caches hold fewer at least
  /// as well. 0 if there is no such measurement.
  double gbs(double bytes) const;
  Spread gbs_spread() const;  ///< Of all measurements.

 private:
  struct Moved {
    double bytes, gbs;
  };
  std::vector<Moved> moved_;
};

/// Which limit of the machine a case meets first.
enum class Limit : std::uint8_t { kArithmetic, kTraffic, kLaunch };
const char* name_of(Limit limit);  ///< "fma", "traffic", "launch".

/// The least time that the machine's limits allow, µs: the roofline (Williams et al., 2009) and the
/// cost of a call.
struct Bound {
  Limit limit = Limit::kArithmetic;
  double us = 0.0;
};

/// `resident`: bytes that the measurement goes round in.
Bound bound_of(const Case& item, const Machine& machine, double resident);

/// A time so far below its bound shows that the bound is none: more than what medians of one run
/// differ by.
inline bool beats(double us, const Bound& bound) { return us < bound.us / 1.05; }

}  // namespace graft::bench
