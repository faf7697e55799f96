#include "apps/graft/generate/sampler.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "apps/graft/user_error.h"

namespace graft::app {

int argmax(std::span<const float> logits) {
  return static_cast<int>(std::ranges::max_element(logits) - logits.begin());
}

Sampler::Sampler(double temperature, double top_p, std::uint64_t seed)
    : temperature_(temperature), top_p_(top_p), random_(seed) {
  if (!(temperature >= 0 && std::isfinite(temperature))) {
    throw UserError(fmt::format("--temp: expected 0 or more, got {}", temperature));
  }
  if (!(top_p > 0 && top_p <= 1)) {
    throw UserError(fmt::format("--top-p: expected above 0 to 1, got {}", top_p));
  }
}

int Sampler::operator()(std::span<const float> logits) {
  if (temperature_ == 0) return argmax(logits);

  const double largest = static_cast<double>(logits[static_cast<std::size_t>(argmax(logits))]);
  std::vector<double> chances(logits.size());
  std::ranges::transform(logits, chances.begin(), [&](float logit) {
    return std::exp((static_cast<double>(logit) - largest) / temperature_);
  });
  std::vector<int> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto chance = [&](int token) { return chances[static_cast<std::size_t>(token)]; };
  double mass = std::accumulate(chances.begin(), chances.end(), 0.0);
  if (top_p_ < 1) {
    std::ranges::stable_sort(order, [&](int x, int y) { return chance(x) > chance(y); });
    double kept = 0.0;
    std::size_t count = 0;
    while (count < order.size() && kept < top_p_ * mass) kept += chance(order[count++]);
    order.resize(std::max<std::size_t>(count, 1));
    mass = kept;
  }

  // 53 random bits, as the standard library's distributions differ between implementations.
  double left = static_cast<double>(random_() >> 11) * 0x1p-53 * mass;
  for (const int token : order) {
    left -= chance(token);
    if (left < 0) return token;
  }
  return order.back();
}

}  // namespace graft::app
