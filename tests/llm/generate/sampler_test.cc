// What picks tokens, against small computations of its own kind: definitions, written out.

#include "graft/llm/generate/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <set>
#include <vector>

#include "graft/llm/user_error.h"

namespace graft::llm {
namespace {

// Chances 0.4, 0.05, 0.3, 0.15, 0.1 at temperature 1, give or take a constant.
std::vector<float> logits() {
  std::vector<float> list;
  for (const double chance : {0.4, 0.05, 0.3, 0.15, 0.1}) {
    list.push_back(static_cast<float>(std::log(chance) + 7.0));
  }
  return list;
}

std::set<int> kept(const SamplerOptions& options, const std::vector<float>& list = logits()) {
  std::set<int> tokens;
  for (const Candidate& candidate : candidates(list, options)) tokens.insert(candidate.token);
  return tokens;
}

// The chance of each token, by its definition.
std::map<int, double> softmax(const std::vector<float>& list, double temperature,
                              const std::set<int>& among) {
  std::map<int, double> chances;
  double sum = 0.0;
  for (const int token : among) {
    const double value =
        std::exp(static_cast<double>(list[static_cast<std::size_t>(token)]) / temperature);
    chances[token] = value;
    sum += value;
  }
  for (auto& [token, chance] : chances) chance /= sum;
  return chances;
}

TEST(Candidates, TemperatureIsThatOfASoftmax) {
  for (const double temperature : {0.3, 1.0, 2.5}) {
    const auto list = candidates(logits(), {.temperature = temperature});
    const auto expected = softmax(logits(), temperature, {0, 1, 2, 3, 4});
    double mass = 0.0;
    for (const Candidate& candidate : list) mass += candidate.chance;
    ASSERT_EQ(list.size(), 5u);
    for (const Candidate& candidate : list) {
      EXPECT_NEAR(candidate.chance / mass, expected.at(candidate.token), 1e-6) << temperature;
    }
  }
}

TEST(Candidates, TopPKeepsTheSmallestSetOfThatMass) {
  EXPECT_EQ(kept({.temperature = 1, .top_p = 1.0}), (std::set{0, 1, 2, 3, 4}));
  EXPECT_EQ(kept({.temperature = 1, .top_p = 0.9}), (std::set{0, 2, 3, 4}));
  EXPECT_EQ(kept({.temperature = 1, .top_p = 0.84}), (std::set{0, 2, 3}));
  EXPECT_EQ(kept({.temperature = 1, .top_p = 0.41}), (std::set{0, 2}));
  EXPECT_EQ(kept({.temperature = 1, .top_p = 0.39}), (std::set{0}));
  EXPECT_EQ(kept({.temperature = 1, .top_p = 1e-9}), (std::set{0}));
  // After the temperature: squared chances are 0.16, 0.0025, 0.09, 0.0225, 0.01 of 0.285.
  EXPECT_EQ(kept({.temperature = 0.5, .top_p = 0.87}), (std::set{0, 2}));
}

TEST(Candidates, MinPKeepsWhatIsLikelyBesideTheLikeliest) {
  EXPECT_EQ(kept({.temperature = 1, .min_p = 0.0}), (std::set{0, 1, 2, 3, 4}));
  EXPECT_EQ(kept({.temperature = 1, .min_p = 0.2}), (std::set{0, 2, 3, 4}));  // 0.08 and more
  EXPECT_EQ(kept({.temperature = 1, .min_p = 0.3}), (std::set{0, 2, 3}));
  EXPECT_EQ(kept({.temperature = 1, .min_p = 1.0}), (std::set{0}));
}

TEST(Candidates, TopKKeepsThatMany) {
  EXPECT_EQ(kept({.temperature = 1, .top_k = 1}), (std::set{0}));
  EXPECT_EQ(kept({.temperature = 1, .top_k = 3}), (std::set{0, 2, 3}));
  EXPECT_EQ(kept({.temperature = 1, .top_k = 9}), (std::set{0, 1, 2, 3, 4}));
  // Top-p counts in what top-k has left: 0.4 of 0.7 is more than half.
  EXPECT_EQ(kept({.temperature = 1, .top_k = 2, .top_p = 0.55}), (std::set{0}));
  EXPECT_EQ(kept({.temperature = 1, .top_p = 0.55}), (std::set{0, 2}));
}

TEST(RepetitionPenalty, DividesPositiveAndMultipliesNegativeLogitsOnce) {
  std::vector<float> list = {2.0f, -2.0f, 0.0f, 3.0f, -1.0f};
  penalize_repetition(list, std::vector<int>{1, 3, 3, 3, 2}, 2.0);
  EXPECT_EQ(list, (std::vector<float>{2.0f, -4.0f, 0.0f, 1.5f, -1.0f}));
}

TEST(RepetitionPenalty, LooksBackAsFarAsItIsTold) {
  const std::vector<float> list = {5.0f, 4.0f, 3.0f};
  const std::vector<int> history = {0, 1, 2};
  const auto pick = [&](double penalty, int size) {
    return Sampler({.repetition_penalty = penalty, .repetition_context_size = size}, 0)(list,
                                                                                        history);
  };
  EXPECT_EQ(pick(1.0, 20), 0);
  EXPECT_EQ(pick(2.0, 2), 0);   // the 0 is further back
  EXPECT_EQ(pick(2.0, 20), 0);  // all alike
  EXPECT_EQ(pick(2.0, 0), 0);
  EXPECT_EQ(Sampler({.repetition_penalty = 2.0}, 0)(list, std::vector<int>{0}), 1);
  EXPECT_EQ(Sampler({.repetition_penalty = 0.5}, 0)(list, std::vector<int>{2}), 2);
}

TEST(Sampler, DrawsAsOftenAsTheChancesSay) {
  const SamplerOptions options{.temperature = 0.7, .top_p = 0.95, .min_p = 0.05};
  const auto expected = softmax(logits(), 0.7, kept(options));
  Sampler sampler(options, 5);
  constexpr int kDraws = 20000;
  std::map<int, int> counts;
  for (int i = 0; i < kDraws; ++i) ++counts[sampler(logits(), {})];
  ASSERT_EQ(counts.size(), expected.size());
  for (const auto& [token, chance] : expected) {
    // Five standard deviations of a binomial count.
    EXPECT_NEAR(counts[token], kDraws * chance, 5 * std::sqrt(kDraws * chance * (1 - chance)))
        << token;
  }
}

TEST(Sampler, SeedDecides) {
  const auto draw = [](std::uint64_t seed) {
    Sampler sampler({.temperature = 1.0}, seed);
    std::vector<int> tokens;
    for (int i = 0; i < 50; ++i) tokens.push_back(sampler(logits(), tokens));
    return tokens;
  };
  EXPECT_EQ(draw(1), draw(1));
  EXPECT_NE(draw(1), draw(2));
}

TEST(Sampler, RefusesImpossibleOptionsByTheirFlag) {
  const auto refusal = [](const SamplerOptions& options) {
    try {
      Sampler(options, 0);
    } catch (const UserError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_TRUE(refusal({.temperature = -1}).starts_with("--temp: "));
  EXPECT_TRUE(refusal({.temperature = NAN}).starts_with("--temp: "));
  EXPECT_TRUE(refusal({.top_k = -1}).starts_with("--top-k: "));
  EXPECT_TRUE(refusal({.top_p = 0}).starts_with("--top-p: "));
  EXPECT_TRUE(refusal({.min_p = 1.5}).starts_with("--min-p: "));
  EXPECT_TRUE(refusal({.repetition_penalty = 0}).starts_with("--repetition-penalty: "));
  EXPECT_TRUE(refusal({.repetition_context_size = -1}).starts_with("--repetition-context-size: "));
  EXPECT_EQ(refusal({}), "");
}

}  // namespace
}  // namespace graft::llm
