#include "benchmarks/graft_bench/arithmetic.h"

#include <algorithm>
#include <cmath>

namespace graft::bench {
namespace {

// One product over the base weight, and one over either half of the adapter with both widths.
double base_product(const Case& item) {
  return 2.0 * static_cast<double>(item.rows()) * static_cast<double>(item.in) *
         static_cast<double>(item.out);
}

double pair_of_products(const Case& item) {
  return 2.0 * static_cast<double>(item.rows()) * static_cast<double>(item.rank) *
         static_cast<double>(item.in + item.out);
}

// Forward: x·A, h·B. Backward: dy·Bᵀ, g·Aᵀ, and xᵀ·g, hᵀ·dy.
double adapter_flops(const Case& item) {
  return pair_of_products(item) * (item.pass == Pass::kForward ? 1.0 : 3.0);
}

}  // namespace

double base_flops(const Case& item) {
  return base_product(item) * (item.pass == Pass::kForward ? 1.0 : 2.0);
}

double flops(const Case& item) {
  switch (item.op) {
    case Op::kLinear:
      return base_flops(item);
    case Op::kLoraDelta:
      return adapter_flops(item);
    case Op::kLoraLinear:
      break;
  }
  return base_flops(item) + adapter_flops(item);
}

double bytes(const Case& item) {
  const double element = item.bf16 ? 2.0 : 4.0;
  const auto rows = static_cast<double>(item.rows());
  const auto in = static_cast<double>(item.in);
  const auto out = static_cast<double>(item.out);
  const auto rank = static_cast<double>(item.rank);
  const bool backward = item.pass == Pass::kForwardBackward;

  double elements = rows * (in + out);                                // x, y
  if (backward) elements += rows * (in + out);                        // dx, dy
  if (item.op != Op::kLoraDelta) elements += in * out;                // W
  elements += rank * (in + out);                                      // A, B
  const double gradients = backward ? 4.0 * rank * (in + out) : 0.0;  // dA, dB in float32
  return elements * element + gradients;
}

double floor_overhead(const Case& item) {
  return item.op == Op::kLoraLinear ? adapter_flops(item) / base_flops(item) : 0.0;
}

Spread spread_of(std::vector<double> samples) {
  if (samples.empty()) return {};
  std::sort(samples.begin(), samples.end());
  const auto at = [&](double fraction) {
    const double place = fraction * static_cast<double>(samples.size() - 1);
    const auto below = static_cast<std::size_t>(place);
    const std::size_t above = std::min(below + 1, samples.size() - 1);
    const double weight = place - std::floor(place);
    return samples[below] + weight * (samples[above] - samples[below]);
  };
  return {at(0.5), at(0.1), at(0.9)};
}

Timing timing_of(const std::vector<std::vector<double>>& rounds) {
  Timing timing;
  std::vector<double> all;
  for (const std::vector<double>& round : rounds) {
    timing.rounds.push_back(spread_of(round).median);
    all.insert(all.end(), round.begin(), round.end());
  }
  static_cast<Spread&>(timing) = spread_of(std::move(all));
  return timing;
}

double overhead(const Timing& fused, const Timing& base) {
  std::vector<double> ratios;
  for (std::size_t i = 0; i < std::min(fused.rounds.size(), base.rounds.size()); ++i) {
    ratios.push_back(fused.rounds[i] / base.rounds[i]);
  }
  return spread_of(std::move(ratios)).median - 1.0;
}

double Machine::gbs(double bytes) const {
  double most = 0.0;
  for (const Moved& moved : moved_) {
    if (moved.bytes >= bytes) most = std::max(most, moved.gbs);
  }
  return most;
}

Spread Machine::gbs_spread() const {
  std::vector<double> all;
  for (const Moved& moved : moved_) all.push_back(moved.gbs);
  return spread_of(std::move(all));
}

const char* name_of(Limit limit) {
  switch (limit) {
    case Limit::kArithmetic:
      return "fma";
    case Limit::kTraffic:
      return "traffic";
    case Limit::kLaunch:
      break;
  }
  return "launch";
}

Bound bound_of(const Case& item, const Machine& machine, double resident) {
  // 10⁹ a second are 10³ a microsecond.
  Bound bound{Limit::kArithmetic, flops(item) / (machine.gflops(item) * 1e3)};
  const double gbs = machine.gbs(resident);
  const double moved = gbs > 0.0 ? bytes(item) / (gbs * 1e3) : 0.0;
  if (moved > bound.us) bound = {Limit::kTraffic, moved};
  if (machine.launch_us > bound.us) bound = {Limit::kLaunch, machine.launch_us};
  return bound;
}

}  // namespace graft::bench
