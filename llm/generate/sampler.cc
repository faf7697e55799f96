#include "graft/llm/generate/sampler.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <set>
#include <string_view>

#include "graft/llm/user_error.h"

namespace graft::llm {
namespace {

void check(bool good, std::string_view flag, std::string_view expected, double value) {
  if (!good) throw UsageError(fmt::format("{}: expected {}, got {}", flag, expected, value));
}

double mass_of(std::span<const Candidate> list) {
  double mass = 0.0;
  for (const Candidate& candidate : list) mass += candidate.chance;
  return mass;
}

// The shortest head of a sorted list that has `share` of its mass.
std::size_t head_with_mass(std::span<const Candidate> sorted, double share) {
  const double wanted = share * mass_of(sorted);
  double kept = 0.0;
  std::size_t count = 0;
  while (count < sorted.size() && kept < wanted) kept += sorted[count++].chance;
  return std::max<std::size_t>(count, 1);
}

}  // namespace

int argmax(std::span<const float> logits) {
  return static_cast<int>(std::ranges::max_element(logits) - logits.begin());
}

void penalize_repetition(std::span<float> logits, std::span<const int> recent, double penalty) {
  for (const int token : std::set<int>(recent.begin(), recent.end())) {
    float& logit = logits[static_cast<std::size_t>(token)];
    const auto value = static_cast<double>(logit);
    logit = static_cast<float>(value > 0 ? value / penalty : value * penalty);
  }
}

std::vector<Candidate> candidates(std::span<const float> logits, const SamplerOptions& options) {
  const auto largest = static_cast<double>(logits[static_cast<std::size_t>(argmax(logits))]);
  std::vector<Candidate> list(logits.size());
  for (std::size_t i = 0; i < logits.size(); ++i) {
    list[i] = {static_cast<int>(i),
               std::exp((static_cast<double>(logits[i]) - largest) / options.temperature)};
  }
  const auto top_k = static_cast<std::size_t>(options.top_k);
  const bool cut = top_k > 0 && top_k < list.size();
  if (cut || options.top_p < 1) std::ranges::stable_sort(list, std::greater(), &Candidate::chance);
  if (cut) list.resize(top_k);
  if (options.top_p < 1) list.resize(head_with_mass(list, options.top_p));
  if (options.min_p > 0) {
    std::erase_if(list, [&](const Candidate& c) { return c.chance < options.min_p; });
  }
  return list;
}

Sampler::Sampler(const SamplerOptions& options, std::uint64_t seed)
    : options_(options), random_(seed) {
  const auto finite_from = [](double value, double least) {
    return value >= least && std::isfinite(value);
  };
  check(finite_from(options.temperature, 0), "--temp", "0 or more", options.temperature);
  check(options.top_k >= 0, "--top-k", "0 or more", options.top_k);
  check(options.top_p > 0 && options.top_p <= 1, "--top-p", "above 0 to 1", options.top_p);
  check(options.min_p >= 0 && options.min_p <= 1, "--min-p", "0 to 1", options.min_p);
  check(options.repetition_penalty > 0 && std::isfinite(options.repetition_penalty),
        "--repetition-penalty", "above 0", options.repetition_penalty);
  check(options.repetition_context_size >= 0, "--repetition-context-size", "0 or more",
        options.repetition_context_size);
}

int Sampler::operator()(std::span<const float> logits, std::span<const int> history) {
  if (options_.repetition_penalty != 1.0) {
    penalized_.assign(logits.begin(), logits.end());
    const auto size = static_cast<std::size_t>(options_.repetition_context_size);
    penalize_repetition(penalized_, history.last(std::min(size, history.size())),
                        options_.repetition_penalty);
    logits = penalized_;
  }
  if (options_.temperature == 0) return argmax(logits);

  const std::vector<Candidate> list = candidates(logits, options_);
  // 53 random bits, as the standard library's distributions differ between implementations.
  double left = static_cast<double>(random_() >> 11) * 0x1p-53 * mass_of(list);
  for (const Candidate& candidate : list) {
    left -= candidate.chance;
    if (left < 0) return candidate.token;
  }
  return list.back().token;
}

}  // namespace graft::llm
