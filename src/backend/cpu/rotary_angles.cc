#include "backend/cpu/rotary_angles.h"

#include <algorithm>
#include <cmath>

#include "graft/context.h"

namespace graft::cpu {

namespace {

// A kept table starts at position 0; longer ones are made for one call.
constexpr std::int64_t kMostKeptPositions = 32768;
constexpr std::size_t kMostKeptTables = 8;

std::shared_ptr<const RotaryAngles> make(const Rotary& rotary, std::int64_t pairs,
                                         std::int64_t first, std::int64_t positions) {
  auto angles = std::make_shared<RotaryAngles>();
  angles->theta = rotary.theta;
  angles->scaling_factor = rotary.scaling_factor;
  angles->pairs = pairs;
  angles->first = first;
  angles->positions = positions;
  const auto size = static_cast<std::size_t>(positions * pairs);
  angles->cos.resize(size);
  angles->sin.resize(size);
  for (std::int64_t i = 0; i < pairs; ++i) {
    // In double: at position 10,000 a float32 angle would be off by 5e-4.
    const double frequency = std::pow(static_cast<double>(rotary.theta),
                                      -static_cast<double>(i) / static_cast<double>(pairs));
    for (std::int64_t p = 0; p < positions; ++p) {
      const double angle =
          static_cast<double>(first + p) / static_cast<double>(rotary.scaling_factor) * frequency;
      const auto at = static_cast<std::size_t>(p * pairs + i);
      angles->cos[at] = static_cast<float>(std::cos(angle));
      angles->sin[at] = static_cast<float>(std::sin(angle));
    }
  }
  return angles;
}

}  // namespace

std::shared_ptr<const RotaryAngles> RotaryTables::angles(const Rotary& rotary, std::int64_t pairs,
                                                         std::int64_t count) {
  const std::int64_t needed = rotary.position + count;
  if (needed > kMostKeptPositions) return make(rotary, pairs, rotary.position, count);

  const auto found = std::find_if(kept_.begin(), kept_.end(), [&](const auto& angles) {
    return angles->theta == rotary.theta && angles->scaling_factor == rotary.scaling_factor &&
           angles->pairs == pairs;
  });
  if (found != kept_.end() && (*found)->positions >= needed) return *found;
  std::int64_t positions = 256;
  while (positions < needed) positions *= 2;
  if (found != kept_.end()) return *found = make(rotary, pairs, 0, positions);
  if (kept_.size() == kMostKeptTables) kept_.erase(kept_.begin());
  return kept_.emplace_back(make(rotary, pairs, 0, positions));
}

}  // namespace graft::cpu

namespace graft {

cpu::RotaryTables& Context::rotary_tables() {
  if (rotary_tables_ == nullptr) rotary_tables_ = std::make_shared<cpu::RotaryTables>();
  return *rotary_tables_;
}

}  // namespace graft
