#include "graft/llm/data/batches.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>
#include <set>

#include "graft/llm/user_error.h"

namespace graft::llm {
namespace {

// A sample of `length` tokens id, id + 1, ..., all of them targets.
Sample sample(std::int32_t id, std::size_t length) {
  Sample sample;
  sample.tokens.resize(length);
  std::iota(sample.tokens.begin(), sample.tokens.end(), id);
  sample.is_target.assign(length, true);
  return sample;
}

// Samples of lengths 2 to 23, not in order; sample i starts with token 1000 · i.
std::vector<Sample> many() {
  std::vector<Sample> samples;
  for (std::int32_t i = 0; i < 22; ++i) {
    samples.push_back(sample(1000 * i, static_cast<std::size_t>(2 + i * 7 % 22)));
  }
  return samples;
}

TEST(Batches, ShiftsMasksAndPads) {
  std::vector<Sample> samples = {sample(10, 4), sample(20, 6)};
  samples[1].is_target = {true, false, false, true, true, false};
  Batches batches(samples, {.batch_size = 2, .pad_token = 7, .pad_multiple = 4});
  const Batch batch = batches.at(0);
  EXPECT_EQ(batch.batch_size, 2);
  EXPECT_EQ(batch.length, 8);  // Five inputs of the longer one, rounded up.
  const std::int32_t no = kIgnoreIndex;
  EXPECT_EQ(batch.tokens, (std::vector<std::int32_t>{10, 11, 12, 7, 7, 7, 7, 7,  //
                                                     20, 21, 22, 23, 24, 7, 7, 7}));
  EXPECT_EQ(batch.targets, (std::vector<std::int32_t>{11, 12, 13, no, no, no, no, no,  //
                                                      no, no, 23, 24, no, no, no, no}));
  EXPECT_EQ(batch.num_targets, 5);
  EXPECT_EQ(batch.num_inputs, 8);
}

TEST(Batches, PadsToTheLongestOnly) {
  const std::vector<Sample> samples = {sample(1, 9), sample(2, 9), sample(3, 10)};
  EXPECT_EQ(Batches(samples, {.batch_size = 2, .pad_multiple = 1}).per_epoch(), 2);
  Batches batches(samples, {.batch_size = 3, .pad_multiple = 1});
  EXPECT_EQ(batches.at(0).length, 9);
  const std::vector<Sample> two = {sample(1, 9), sample(2, 9)};
  EXPECT_EQ(Batches(two, {.batch_size = 2}).at(0).length, 8);
}

TEST(Batches, AnEpochHasEverySampleOnceAmongItsLike) {
  const std::vector<Sample> samples = many();
  Batches batches(samples, {.batch_size = 4, .seed = 3, .pad_multiple = 1});
  ASSERT_EQ(batches.per_epoch(), 6);  // Five of four, and one of two.
  for (std::int64_t epoch = 0; epoch < 3; ++epoch) {
    std::multiset<std::int32_t> seen;
    std::int64_t short_batches = 0;
    for (std::int64_t i = 0; i < 6; ++i) {
      const Batch batch = batches.at(epoch * 6 + i);
      short_batches += batch.batch_size == 2;
      for (std::int64_t row = 0; row < batch.batch_size; ++row) {
        seen.insert(batch.tokens[static_cast<std::size_t>(row * batch.length)]);
      }
      // Lengths 2, 3, ..., 23 sorted: in a batch they differ by three at most.
      EXPECT_LE(batch.batch_size * batch.length - batch.num_inputs, 6);
    }
    EXPECT_EQ(short_batches, 1);
    EXPECT_EQ(seen.size(), 22u);
    for (std::int32_t i = 0; i < 22; ++i) EXPECT_EQ(seen.count(1000 * i), 1u);
  }
}

std::vector<std::int32_t> first_tokens(const std::vector<Sample>& samples, std::uint64_t seed,
                                       const std::vector<std::int64_t>& steps) {
  Batches batches(samples, {.batch_size = 2, .seed = seed});
  std::vector<std::int32_t> first;
  for (const std::int64_t step : steps) first.push_back(batches.at(step).tokens[0]);
  return first;
}

TEST(Batches, OrderIsOfTheSeedAlone) {
  const std::vector<Sample> samples = many();
  std::vector<std::int64_t> steps(33);
  std::iota(steps.begin(), steps.end(), 0);
  const std::vector<std::int32_t> run = first_tokens(samples, 1, steps);
  EXPECT_EQ(first_tokens(samples, 1, steps), run);
  EXPECT_NE(first_tokens(samples, 2, steps), run);
  // A new order each epoch.
  EXPECT_FALSE(std::equal(run.begin(), run.begin() + 11, run.begin() + 11));
  // A run that goes on from step 20, or looks back, meets the same batches.
  EXPECT_EQ(first_tokens(samples, 1, {20, 21, 3, 32}),
            (std::vector<std::int32_t>{run[20], run[21], run[3], run[32]}));
}

TEST(Batches, RefusesWhatMakesNone) {
  const std::vector<Sample> samples = many();
  EXPECT_THROW(Batches({}, {}), UserError);
  EXPECT_THROW(Batches({sample(1, 1)}, {}), UserError);
  EXPECT_THROW(Batches(samples, {.batch_size = 0}), UserError);
  EXPECT_THROW(Batches(samples, {.pad_multiple = 0}), UserError);
  const std::int64_t most = std::numeric_limits<std::int64_t>::max();
  EXPECT_EQ(Batches(samples, {.batch_size = most}).per_epoch(), 1);
  EXPECT_THROW(Batches(samples, {}).at(-1), UserError);
}

TEST(Permutation, IsOne) {
  for (const std::size_t size : {0u, 1u, 2u, 3u, 100u}) {
    std::vector<std::size_t> order = permutation(size, 5, 6);
    std::sort(order.begin(), order.end());
    std::vector<std::size_t> all(size);
    std::iota(all.begin(), all.end(), std::size_t{0});
    EXPECT_EQ(order, all);
  }
}

TEST(Permutation, IsFair) {
  // 24 orders of four things, 24,000 draws: counts within six standard deviations of 1000.
  std::map<std::vector<std::size_t>, int> counts;
  for (std::uint64_t epoch = 0; epoch < 24000; ++epoch) ++counts[permutation(4, 7, epoch)];
  ASSERT_EQ(counts.size(), 24u);
  for (const auto& [order, count] : counts) EXPECT_NEAR(count, 1000, 6 * 31);
}

}  // namespace
}  // namespace graft::llm
