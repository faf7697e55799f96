#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

namespace graft {

/// IEEE binary16: a sign, 5 bits of exponent and 10 of fraction.
inline float from_float16(std::uint16_t bits) {
  const int exponent = (bits >> 10) & 0x1f, fraction = bits & 0x3ff;
  float magnitude;
  if (exponent == 0x1f) {
    magnitude = fraction == 0 ? HUGE_VALF : std::nanf("");
  } else if (exponent == 0) {
    magnitude = std::ldexp(static_cast<float>(fraction), -24);
  } else {
    magnitude = std::ldexp(static_cast<float>(fraction | 0x400), exponent - 25);
  }
  return std::copysign(magnitude, (bits & 0x8000u) != 0 ? -1.0f : 1.0f);
}

/// Rounds to nearest, ties to even; every NaN becomes a quiet one.
inline std::uint16_t to_float16(float value) {
  const std::uint32_t sign = std::bit_cast<std::uint32_t>(value) >> 16 & 0x8000u;
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return static_cast<std::uint16_t>(sign | 0x7e00u);
  // 65520 is half a step above the largest number.
  if (magnitude >= 65520.0f) return static_cast<std::uint16_t>(sign | 0x7c00u);
  // In units of the last place. Fewer than 1024 of the smallest unit are a subnormal; a leading
  // bit, also one that rounding carried, counts the exponent up by one.
  const int exponent = std::max(std::ilogb(magnitude), -14);
  const auto units =
      static_cast<std::uint32_t>(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
  return static_cast<std::uint16_t>(sign |
                                    (units + (static_cast<std::uint32_t>(exponent + 14) << 10)));
}

}  // namespace graft
