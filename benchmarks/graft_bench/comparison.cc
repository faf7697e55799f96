#include "benchmarks/graft_bench/comparison.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <utility>

#include "graft/mlx/fusion.h"

namespace graft::bench {
namespace {

// Of an output's largest element. Far above rounding, that of tensor cores included, and far below
// what a wrong kernel makes.
constexpr float kTolerance = 1e-2f;

// Enough calls that a wait for the device is lost among them, until their outputs fill its caches.
constexpr std::size_t kMostTogether = 32;
constexpr std::size_t kLeastTogether = 4;
constexpr std::size_t kBytesTogether = std::size_t{32} << 20;

float largest(const mx::array& array) { return mx::max(mx::abs(array)).item<float>(); }

// A compiler's message has many lines, a cell one.
std::string one_line(std::string text) {
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

// What stands against calling the outputs of `call` fused: composed ops made them, or they are
// wrong. Kernels that fail to compile say so here.
std::string objection_to(const Call& call, const Arrays& expected) {
  mlx::reset_fusion_report();
  Arrays outputs;
  try {
    outputs = call(0);
    mx::eval(outputs);
  } catch (const std::exception& error) {
    return one_line(error.what());
  }
  for (const mlx::FusionRecord& record : mlx::fusion_report()) {
    if (record.fused) continue;
    return fmt::format("{} did not run fused: {}", name_of(record.pass), record.reason);
  }
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const mx::array difference = mx::abs(mx::subtract(outputs[i], expected[i]));
    const float scale = largest(expected[i]);
    // What is not a number is not within it either.
    if (mx::all(mx::less_equal(difference, mx::array(kTolerance * scale))).item<bool>()) continue;
    return fmt::format("output {} differs from MLX's by {:.2g} of its largest element", i,
                       largest(difference) / scale);
  }
  return "";
}

std::size_t calls_together(const Arrays& outputs) {
  std::size_t bytes = 0;
  for (const mx::array& output : outputs) bytes += output.nbytes();
  return std::clamp(kBytesTogether / std::max<std::size_t>(bytes, 1), kLeastTogether,
                    kMostTogether);
}

void run_together(const Call& call, std::size_t first, std::size_t count, std::size_t sets) {
  Arrays outputs;
  for (std::size_t i = 0; i < count; ++i) {
    for (mx::array& output : call((first + i) % sets)) outputs.push_back(std::move(output));
  }
  mx::eval(std::move(outputs));
}

// Candidates, and where the time of each belongs.
class Race {
 public:
  using Place = std::optional<Compared::Measured> Compared::*;

  void add(Place place, std::string way, bool uses_blas, std::function<void(std::size_t)> run) {
    candidates_.push_back({std::move(way), uses_blas, std::move(run)});
    places_.push_back(place);
  }

  // Each place gets the fastest of its candidates.
  void run(Stopwatch& stopwatch, std::size_t sets, Compared& result) const {
    const std::vector<Timing> timings = stopwatch.measure(candidates_, sets);
    for (std::size_t i = 0; i < timings.size(); ++i) {
      auto& best = result.*places_[i];
      if (best && best->median <= timings[i].median) continue;
      best = Compared::Measured{timings[i], candidates_[i].name};
    }
  }

 private:
  std::vector<Candidate> candidates_;
  std::vector<Place> places_;
};

void divide(std::optional<Compared::Measured>& measured, std::size_t calls) {
  if (!measured) return;
  const auto share = static_cast<double>(calls);
  measured->median /= share;
  measured->p10 /= share;
  measured->p90 /= share;
  for (double& round : measured->rounds) round /= share;
}

}  // namespace

Compared compare(const Comparison& comparison, Stopwatch& stopwatch, bool mlx_uses_blas) {
  const std::size_t sets = comparison.sets;
  Compared result;
  result.subject = comparison.subject;
  result.sets = sets;
  Arrays expected = comparison.mlx.front().second(0);
  mx::eval(expected);
  result.objection = objection_to(comparison.fused, expected);
  result.together = calls_together(expected);
  expected.clear();

  Race race;
  const auto add = [&](const std::string& way, const Call& call, bool uses_blas, Race::Place one,
                       Race::Place many) {
    race.add(one, way, uses_blas, [call](std::size_t i) { mx::eval(call(i)); });
    race.add(many, way, uses_blas, [call, sets, count = result.together](std::size_t i) {
      run_together(call, i, count, sets);
    });
  };
  if (result.objection.empty()) {
    add("fused", comparison.fused, false, &Compared::fused, &Compared::fused_together);
  }
  if (comparison.unfused) {
    race.add(&Compared::unfused, "unfused", mlx_uses_blas, comparison.unfused);
  }
  for (const auto& [way, call] : comparison.mlx) {
    add(way, call, mlx_uses_blas, &Compared::mlx, &Compared::mlx_together);
  }
  race.run(stopwatch, sets, result);
  divide(result.fused_together, result.together);
  divide(result.mlx_together, result.together);
  return result;
}

}  // namespace graft::bench
