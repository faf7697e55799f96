#include "backend/rotary_reference.h"

#include <cmath>
#include <cstddef>

namespace graft::reference {

void turn(std::vector<double>& row, const Rotary& rotary, std::int64_t position, bool inverse) {
  const std::size_t pairs = row.size() / 2;
  for (std::size_t i = 0; i < pairs; ++i) {
    const double exponent = -static_cast<double>(i) / static_cast<double>(pairs);
    const double angle = (inverse ? -1.0 : 1.0) * static_cast<double>(position) /
                         static_cast<double>(rotary.scaling_factor) *
                         std::pow(static_cast<double>(rotary.theta), exponent);
    double& first = row[rotary.interleaved ? 2 * i : i];
    double& second = row[rotary.interleaved ? 2 * i + 1 : i + pairs];
    const double a = first, b = second;
    first = a * std::cos(angle) - b * std::sin(angle);
    second = b * std::cos(angle) + a * std::sin(angle);
  }
}

}  // namespace graft::reference
