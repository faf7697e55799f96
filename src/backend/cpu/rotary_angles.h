#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "graft/rope.h"

namespace graft::cpu {

/// Cosines and sines of a rotary embedding for `positions` positions from `first` on:
/// [position][pairs].
struct RotaryAngles {
  float theta = 0, scaling_factor = 1;
  std::int64_t pairs = 0, first = 0, positions = 0;
  std::vector<float> cos, sin;

  const float* cos_at(std::int64_t position) const {
    return cos.data() + (position - first) * pairs;
  }
  const float* sin_at(std::int64_t position) const {
    return sin.data() + (position - first) * pairs;
  }
};

/// What a context keeps of them, by theta, scaling factor and pairs, since a model asks for the
/// same ones in each layer and step.
class RotaryTables {
 public:
  /// Angles that cover `count` positions from `rotary.position` on.
  std::shared_ptr<const RotaryAngles> angles(const Rotary& rotary, std::int64_t pairs,
                                             std::int64_t count);

 private:
  std::vector<std::shared_ptr<const RotaryAngles>> kept_;
};

}  // namespace graft::cpu
