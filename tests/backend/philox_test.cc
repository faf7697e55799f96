#include "backend/philox.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <vector>

#include "product/cpu/kernels.h"
#include "support/isas.h"

namespace graft {
namespace {

using Words = std::array<std::uint32_t, 4>;

// Known answers published with the algorithm (Random123, kat_vectors, philox4x32-10).
TEST(Philox, GivesThePublishedAnswers) {
  EXPECT_EQ(philox({0, 0, 0, 0}, {0, 0}), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Dropout, MasksAreTheScalarDefinitionFromAnyElementOn) {
  test::on_each_isa([] {
    const cpu::Kernels& kernels = cpu::kernels_for(DType::kFloat32);
    // The third offset makes the low word of the counter wrap inside a vector.
    for (const std::uint64_t offset : {0ull, 12345678901234ull, 0xfffffffaull}) {
      const Dropout dropout{0.3f, 0x123456789abcdefull, offset};
      for (const std::uint64_t first : {0, 1, 2, 3, 4, 77}) {
        for (const std::int64_t count : {0, 1, 5, 63, 64, 65, 300}) {
          std::vector<float> mask(static_cast<std::size_t>(count) + 1, -1.0f);
          kernels.dropout_mask(dropout, first, count, mask.data());
          for (std::int64_t i = 0; i < count; ++i) {
            const std::uint64_t element = first + static_cast<std::uint64_t>(i);
            const bool keep = dropout_keeps(element, dropout.p, dropout.seed, dropout.offset);
            ASSERT_FLOAT_EQ(mask[static_cast<std::size_t>(i)], keep ? 1 / 0.7f : 0.0f);
          }
          EXPECT_EQ(mask.back(), -1.0f);
        }
      }
    }
  });
}

TEST(Dropout, DropsItsShareAndDiffersByOffset) {
  const cpu::Kernels& kernels = cpu::kernels_for(DType::kFloat32);
  constexpr int kCount = 1 << 18;
  std::vector<float> mask(kCount), other(kCount);
  for (const float p : {0.1f, 0.5f, 0.9f}) {
    kernels.dropout_mask({p, 7, 0}, 0, kCount, mask.data());
    kernels.dropout_mask({p, 7, kCount / 4}, 0, kCount, other.data());
    int dropped = 0, both = 0;
    for (std::size_t i = 0; i < mask.size(); ++i) {
      dropped += mask[i] == 0.0f;
      both += mask[i] == 0.0f && other[i] == 0.0f;
    }
    // Five standard deviations of the binomial; two independent masks meet in p² of the places.
    const double q = static_cast<double>(p) * p;
    EXPECT_NEAR(dropped, p * kCount, 5 * std::sqrt(p * (1 - p) * kCount));
    EXPECT_NEAR(both, q * kCount, 5 * std::sqrt(q * (1 - q) * kCount));
  }
}

}  // namespace
}  // namespace graft
