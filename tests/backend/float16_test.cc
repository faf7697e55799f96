#include "backend/float16.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace graft {
namespace {

constexpr std::uint32_t kInfinity = 0x7c00;

TEST(Float16, GivesValuesOfTheStandard) {
  EXPECT_EQ(from_float16(0x3c00), 1.0f);
  EXPECT_EQ(from_float16(0xc000), -2.0f);
  EXPECT_EQ(from_float16(0x3555), 0.333251953125f);
  EXPECT_EQ(from_float16(0x7bff), 65504.0f);
  EXPECT_EQ(from_float16(0x0400), std::ldexp(1.0f, -14));
  EXPECT_EQ(from_float16(0x0001), std::ldexp(1.0f, -24));
  EXPECT_EQ(from_float16(0xfc00), -std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(from_float16(0x7c01)));
  EXPECT_TRUE(std::signbit(from_float16(0x8000)));
}

TEST(Float16, EveryNumberComesBack) {
  for (std::uint32_t bits = 0; bits <= kInfinity; ++bits) {
    for (const std::uint32_t sign : {0x0000u, 0x8000u}) {
      const auto number = static_cast<std::uint16_t>(sign | bits);
      ASSERT_EQ(to_float16(from_float16(number)), number);
    }
  }
}

TEST(Float16, RoundsToNearestAndTiesToEven) {
  for (std::uint32_t bits = 0; bits + 1 < kInfinity; ++bits) {
    const float below = from_float16(static_cast<std::uint16_t>(bits));
    const float above = from_float16(static_cast<std::uint16_t>(bits + 1));
    const float middle = (below + above) / 2;  // exact
    ASSERT_EQ(to_float16(middle), bits + (bits & 1));
    ASSERT_EQ(to_float16(std::nextafter(middle, below)), bits);
    ASSERT_EQ(to_float16(std::nextafter(middle, above)), bits + 1);
  }
}

TEST(Float16, WhatIsTooLargeOrNoNumberStaysSo) {
  EXPECT_EQ(to_float16(65519.996f), 0x7bff);
  EXPECT_EQ(to_float16(65520.0f), kInfinity);
  EXPECT_EQ(to_float16(70000.0f), kInfinity);
  EXPECT_EQ(to_float16(-1e30f), 0x8000 | kInfinity);
  EXPECT_EQ(to_float16(std::ldexp(1.0f, -25)), 0);
  EXPECT_EQ(to_float16(std::numeric_limits<float>::denorm_min()), 0);
  EXPECT_TRUE(std::isnan(from_float16(to_float16(std::nanf("")))));
}

}  // namespace
}  // namespace graft
