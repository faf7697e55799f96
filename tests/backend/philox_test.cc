#include "backend/philox.h"

#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "product/cpu/kernels.h"
#include "support/isas.h"

namespace graft {
namespace {

using Words = std::array<std::uint32_t, 4>;

// Known answers published with the algorithm (Random123, kat_vectors, philox4x32 of 7 rounds).
TEST(Philox, GivesThePublishedAnswers) {
  EXPECT_EQ(philox({0, 0, 0, 0}, {0, 0}), (Words{0x5f6fb709, 0x0d893f64, 0x4f121f81, 0x4f730a48}));
  EXPECT_EQ(philox({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (Words{0x5207ddc2, 0x45165e59, 0x4d8ee751, 0x8c52f662}));
  EXPECT_EQ(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0x4dfccaba, 0x190a87f0, 0xc47362ba, 0xb6b5242a}));
}

// The first of those answers cut into fields by hand, the low half of a word first.
constexpr std::array<std::uint32_t, 8> kFields = {0xb709, 0x5f6f, 0x3f64, 0x0d89,
                                                  0x1f81, 0x4f12, 0x0a48, 0x4f73};

TEST(Dropout, AnElementIsDroppedIfItsFieldIsBelowTheThreshold) {
  for (std::size_t i = 0; i < kFields.size(); ++i) {
    const auto p = [](std::uint32_t threshold) { return static_cast<float>(threshold) / 65536; };
    EXPECT_TRUE(dropout_keeps(i, {p(kFields[i]), 0, 0})) << i;
    EXPECT_FALSE(dropout_keeps(i, {p(kFields[i] + 1), 0, 0})) << i;
  }
}

TEST(Dropout, AChanceIsTakenToTheNearestPartOf65536) {
  const auto threshold = [](float p) { return Dropout{p}.threshold(); };
  const float half = std::ldexp(1.0f, -17);
  EXPECT_EQ(threshold(0.0f), 0u);
  EXPECT_EQ(threshold(std::numeric_limits<float>::denorm_min()), 0u);
  EXPECT_EQ(threshold(std::nextafter(half, 0.0f)), 0u);
  EXPECT_EQ(threshold(half), 1u);
  EXPECT_EQ(threshold(0.1f), 6554u);
  EXPECT_EQ(threshold(0.5f), 32768u);
  EXPECT_EQ(threshold(65535.0f / 65536), 65535u);
  EXPECT_EQ(threshold(std::nextafter(1.0f, 0.0f)), 65535u);

  EXPECT_EQ(Dropout{0.0f}.scale(), 1.0f);
  EXPECT_FLOAT_EQ(Dropout{0.1f}.scale(), 65536.0f / 58982.0f);
  EXPECT_EQ(Dropout{0.5f}.scale(), 2.0f);
  EXPECT_EQ(Dropout{std::nextafter(1.0f, 0.0f)}.scale(), 65536.0f);
}

std::vector<std::uint8_t> kept_bytes(const Dropout& dropout, std::int64_t counters) {
  std::vector<std::uint8_t> bits(static_cast<std::size_t>(counters + cpu::kKeptSlack));
  cpu::kernels_for(DType::kFloat32).dropout_bits(dropout, 0, counters, bits.data());
  return bits;
}

TEST(Dropout, BitsAreTheScalarDefinitionFromAnyCounterOn) {
  test::on_each_isa([] {
    const cpu::Kernels& kernels = cpu::kernels_for(DType::kFloat32);
    constexpr std::size_t kSlack = cpu::kKeptSlack;
    // The low word of a counter wraps inside a vector, and the counter itself.
    for (const std::uint64_t offset : {0ull, 12345678901234ull, 0xfffffff0ull, ~0ull - 17}) {
      for (const float p : {0.3f, 1.0f / 65536, 65535.0f / 65536}) {
        const Dropout dropout{p, 0x123456789abcdefull, offset};
        for (const std::uint64_t first : {0, 1, 7, 16}) {
          for (const std::int64_t count : {0, 1, 3, 8, 31, 32, 33, 100}) {
            const auto size = static_cast<std::size_t>(count);
            std::vector<std::uint8_t> bits(size + kSlack + 1, 0xee);
            kernels.dropout_bits(dropout, first, count, bits.data());
            for (std::size_t i = 0; i < 8 * size; ++i) {
              const bool kept = (bits[i / 8] >> i % 8 & 1) != 0;
              ASSERT_EQ(kept, dropout_keeps(8 * first + i, dropout)) << i;
            }
            EXPECT_EQ(bits.back(), 0xee);
          }
        }
      }
    }
  });
}

TEST(Dropout, AWordOfBitsNeedNotBeAligned) {
  std::vector<std::uint8_t> bits(64);
  for (std::size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<std::uint8_t>(37 * i + 11);
  const cpu::Kept kept{bits.data(), 5, 77};
  for (std::int64_t row = 0; row < 3; ++row) {
    for (std::int64_t col = 0; col < 70; ++col) {
      for (std::int64_t i = 0; i < 32; ++i) {
        const auto bit = static_cast<std::size_t>(5 + 77 * row + col + i);
        ASSERT_EQ(kept.word(row, col) >> i & 1, bits[bit / 8] >> bit % 8 & 1u);
        ASSERT_EQ(kept.at(row, col).word(0, 0), kept.word(row, col));
      }
    }
  }
}

// ---- statistics of 10⁸ elements ----
//
// Each number below would be a standard normal deviate if elements were dropped independently with
// the chance that the threshold stands for: a count against the binomial, or a chi-squared of d
// degrees of freedom by Wilson and Hilferty's cube root. The bound is 10⁻⁴, both ends together, so
// that of the 76 numbers of all chances one is beyond it by chance in 130 seeds. A mask that
// repeats rows or has one field too often is far beyond (the last test).

constexpr double kBound = 3.89;
constexpr std::size_t kCols = 1024, kRows = 97792, kWords = kRows * kCols / 64;
static_assert(kWords * 64 > 100'000'000);

using Mask = std::vector<std::uint64_t>;  // of (kRows, kCols), bit 1 for dropped
using Deviates = std::map<std::string, double>;

Mask dropped_by(const Dropout& dropout) {
  const std::vector<std::uint8_t> kept = kept_bytes(dropout, kWords * 8);
  Mask mask(kWords);
  std::memcpy(mask.data(), kept.data(), kWords * 8);
  for (std::uint64_t& word : mask) word = ~word;
  return mask;
}

double binomial(double seen, double trials, double p) {
  return (seen - trials * p) / std::sqrt(trials * p * (1 - p));
}

double chi_squared(double sum, double degrees) {
  const double ninths = 2 / (9 * degrees);
  return (std::cbrt(sum / degrees) - (1 - ninths)) / std::sqrt(ninths);
}

// Squares of the counts' deviates, each of `trials`, summed. Its variance counts in that a binomial
// is no normal.
double spread(const std::vector<std::int64_t>& counts, double trials, double p) {
  double sum = 0;
  for (const std::int64_t count : counts) {
    const double z = binomial(static_cast<double>(count), trials, p);
    sum += z * z;
  }
  const double q = 1 - p, n = static_cast<double>(counts.size());
  return (sum - n) / std::sqrt(n * (2 + (1 - 6 * p * q) / (trials * p * q)));
}

// The four outcomes of pairs of elements, no element in two of them. Bit i of first(w) and of
// second(w) make a pair, for each bit of `pairs`.
double pairs_of(std::size_t words, std::uint64_t pairs, double p,
                const std::function<std::uint64_t(std::size_t)>& first,
                const std::function<std::uint64_t(std::size_t)>& second) {
  std::int64_t seen[4] = {};
  for (std::size_t w = 0; w < words; ++w) {
    const std::uint64_t a = first(w), b = second(w);
    seen[0] += std::popcount(~a & ~b & pairs);
    seen[1] += std::popcount(a & ~b & pairs);
    seen[2] += std::popcount(~a & b & pairs);
    seen[3] += std::popcount(a & b & pairs);
  }
  const double n = static_cast<double>(words) * std::popcount(pairs), q = 1 - p;
  const double expected[4] = {n * q * q, n * p * q, n * p * q, n * p * p};
  double sum = 0;
  for (int i = 0; i < 4; ++i) {
    const double off = static_cast<double>(seen[i]) - expected[i];
    sum += off * off / expected[i];
  }
  return chi_squared(sum, 3);
}

// How often a counter's eight fields give each of 256 outcomes; the rarest are counted together.
double outcomes_of_counters(const Mask& mask, double p) {
  std::vector<std::int64_t> seen(256);
  for (const std::uint64_t word : mask) {
    for (int i = 0; i < 64; i += 8) ++seen[word >> i & 255];
  }
  double sum = 0, rare_seen = 0, rare_expected = 0;
  int classes = 0;
  const auto add = [&](double count, double expected) {
    sum += (count - expected) * (count - expected) / expected;
    ++classes;
  };
  for (unsigned i = 0; i < 256; ++i) {
    const int k = std::popcount(i);
    const double expected = 8.0 * kWords * std::pow(p, k) * std::pow(1 - p, 8 - k);
    if (expected >= 20) {
      add(static_cast<double>(seen[i]), expected);
    } else {
      rare_seen += static_cast<double>(seen[i]);
      rare_expected += expected;
    }
  }
  if (rare_expected > 0) add(rare_seen, rare_expected);
  return chi_squared(sum, classes - 1);
}

Deviates deviates(const Mask& mask, double p) {
  constexpr std::size_t kRowWords = kCols / 64;
  std::vector<std::int64_t> rows(kRows), cols(kCols);
  std::int64_t all = 0;
  for (std::size_t w = 0; w < kWords; ++w) {
    rows[w / kRowWords] += std::popcount(mask[w]);
    for (std::uint64_t left = mask[w]; left != 0; left &= left - 1) {
      ++cols[w % kRowWords * 64 + static_cast<std::size_t>(std::countr_zero(left))];
    }
  }
  for (const std::int64_t count : rows) all += count;

  Deviates found;
  found["rate"] = binomial(static_cast<double>(all), 64.0 * kWords, p);
  found["rows"] = spread(rows, kCols, p);
  found["columns"] = spread(cols, kRows, p);
  found["fields of a counter"] = outcomes_of_counters(mask, p);
  for (const int lag : {1, 2, 3, 4, 7, 8, 16, 32}) {
    // Bits 0 to lag − 1 of every 2·lag with those that follow them.
    std::uint64_t pairs = 0;
    for (int i = 0; i + lag < 64; ++i) pairs |= std::uint64_t{i % (2 * lag) < lag} << i;
    found["neighbours at " + std::to_string(lag)] = pairs_of(
        kWords, pairs, p, [&](std::size_t w) { return mask[w]; },
        [&, lag](std::size_t w) { return mask[w] >> lag; });
  }
  for (const std::size_t lag : {std::size_t{1}, kRowWords, 8 * kRowWords}) {
    const auto at = [lag](std::size_t w) { return w / lag * 2 * lag + w % lag; };
    found["words at " + std::to_string(lag)] = pairs_of(
        kWords / 2, ~std::uint64_t{0}, p, [&](std::size_t w) { return mask[at(w)]; },
        [&, lag](std::size_t w) { return mask[at(w) + lag]; });
  }
  return found;
}

double between(const Mask& a, const Mask& b, double p) {
  return pairs_of(
      kWords, ~std::uint64_t{0}, p, [&](std::size_t w) { return a[w]; },
      [&](std::size_t w) { return b[w]; });
}

// A module's masks of other steps, other modules, and another seed.
TEST(Dropout, ElementsAreDroppedIndependentlyAndAtTheRate) {
  for (const float p : {0.01f, 0.05f, 0.1f, 0.5f}) {
    SCOPED_TRACE(p);
    const Dropout dropout{p, 20261128, 0};
    const double chance = dropout.threshold() / 65536.0;
    const Mask mask = dropped_by(dropout);
    Deviates found = deviates(mask, chance);
    ASSERT_EQ(found.size(), 15u);
    for (const std::uint64_t offset : {std::uint64_t{kWords * 8}, std::uint64_t{1} << 32}) {
      found["offset " + std::to_string(offset)] =
          between(mask, dropped_by({p, dropout.seed, offset}), chance);
    }
    for (const std::uint64_t bit : {std::uint64_t{1}, std::uint64_t{1} << 32}) {
      found["seed " + std::to_string(bit)] =
          between(mask, dropped_by({p, dropout.seed ^ bit, 0}), chance);
    }
    for (const auto& [what, z] : found) EXPECT_LT(std::abs(z), kBound) << what;
  }
}

// What the numbers would be of masks that are wrong.
TEST(Dropout, TheStatisticsSeeWhatIsWrong) {
  const Dropout dropout{0.1f, 20261128, 0};
  const double p = dropout.threshold() / 65536.0;
  const Mask good = dropped_by(dropout);
  EXPECT_GT(std::abs(deviates(good, p * 1.002)["rate"]), kBound);

  Mask mask = good;  // every 50th row the one before
  constexpr std::size_t kRowWords = kCols / 64;
  for (std::size_t w = 0; w < kWords; ++w) {
    if (w / kRowWords % 50 == 49) mask[w] = mask[w - kRowWords];
  }
  EXPECT_GT(std::abs(deviates(mask, p)["words at 16"]), kBound);

  mask = good;  // an element of every 10th word the one before
  for (std::size_t w = 0; w < kWords; w += 10) mask[w] = (mask[w] & ~2ull) | (mask[w] & 1) << 1;
  EXPECT_GT(std::abs(deviates(mask, p)["neighbours at 1"]), kBound);
  EXPECT_GT(std::abs(deviates(mask, p)["fields of a counter"]), kBound);

  mask = good;  // two columns never dropped in every fourth row
  for (std::size_t w = 0; w < kWords; w += kRowWords) {
    if (w / kRowWords % 4 == 0) mask[w] &= ~3ull;
  }
  EXPECT_GT(std::abs(deviates(mask, p)["columns"]), kBound);

  mask = good;  // some rows with nothing dropped
  for (std::size_t w = 0; w < 100 * kRowWords; ++w) mask[w] = 0;
  EXPECT_GT(std::abs(deviates(mask, p)["rows"]), kBound);
}

}  // namespace
}  // namespace graft
