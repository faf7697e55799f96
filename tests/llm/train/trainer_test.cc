// What a trainer changes from one iteration to the next.

#include "graft/llm/train/trainer.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <set>
#include <vector>

#include "graft/llm/model/llama.h"
#include "graft/llm/user_error.h"
#include "graft/llm/weights/gguf_file.h"
#include "mlx/ops.h"
#include "tests/support/tiny_model.h"

namespace graft::llm {
namespace {

using testing::TemporaryFolder;
using testing::TinyModel;

constexpr int kRows = 3, kLength = 24;

class TrainerTest : public ::testing::Test {
 protected:
  TrainerTest() : llama_(load()) {}

  static Llama load() {
    const TemporaryFolder folder;
    TinyModel().write(folder.file("tiny.gguf"));
    return Llama(LlamaWeights(GgufFile::open(folder.file("tiny.gguf"))), {.training = true});
  }

  static Batch batch(int first = 0) {
    Batch batch;
    batch.batch_size = kRows;
    batch.length = kLength;
    batch.num_targets = batch.num_inputs = kRows * kLength;
    for (int i = 0; i < kRows * kLength; ++i) {
      batch.tokens.push_back((first + i * 37 + i * i * 11) % 250 + 3);
      batch.targets.push_back((first + i * 37 + i * i * 11 + 5) % 250 + 3);
    }
    return batch;
  }

  static std::vector<float> values(const Trainer& trainer) {
    std::vector<float> all;
    for (const LoraPair& pair : trainer.pairs()) {
      for (const mx::array& matrix : {pair.a, pair.b}) {
        all.insert(all.end(), matrix.data<float>(), matrix.data<float>() + matrix.size());
      }
    }
    return all;
  }

  // B begins at zero, where dropout on A's input would change no loss.
  static std::vector<LoraPair> pairs(const AdapterLayout& layout) {
    std::vector<LoraPair> pairs = layout.initial_pairs(1);
    for (LoraPair& pair : pairs) pair.b = mx::full(pair.b.shape(), 0.05f, mx::float32);
    return pairs;
  }

  const Llama llama_;
};

TEST_F(TrainerTest, EveryIterationAndModuleHasAMaskOfItsOwn) {
  for (const float dropout : {0.0f, 0.5f}) {
    const AdapterLayout layout(llama_.config(), {.rank = 4, .dropout = dropout});
    // A rate of 0 leaves the parameters as they are: only masks tell iterations apart.
    Trainer trainer(llama_, layout, pairs(layout), {.schedule = {LrShape::kConstant, 0.0, 0, 9}});
    std::set<double> losses;
    std::set<std::uint64_t> offsets;
    for (int i = 0; i < 9; ++i) {
      for (const std::uint64_t offset : trainer.state().dropout.offsets) offsets.insert(offset);
      losses.insert(trainer.step(batch()).loss);
    }
    EXPECT_EQ(losses.size(), dropout > 0 ? 9u : 1u);
    EXPECT_EQ(offsets.size(), 9 * layout.modules().size());
    // So far apart that a module's masks of one call can't reach into another's.
    std::uint64_t before = 0;
    for (const std::uint64_t offset : offsets) {
      EXPECT_GE(offset - before, std::uint64_t{1} << 32);
      before = offset;
    }
  }
}

TEST_F(TrainerTest, PairsAndBatchesOfOtherSizesAreRefused) {
  const AdapterLayout layout(llama_.config(), {.rank = 4});
  const AdapterLayout wider(llama_.config(), {.rank = 8});
  std::vector<LoraPair> few = pairs(layout);
  few.pop_back();
  EXPECT_THROW(Trainer(llama_, layout, few, {}), UserError);
  EXPECT_THROW(Trainer(llama_, layout, pairs(wider), {}), UserError);

  Trainer trainer(llama_, layout, pairs(layout), {});
  const std::vector<float> before = values(trainer);
  Batch cut = batch();
  cut.tokens.resize(3);
  EXPECT_THROW(trainer.step(cut), UserError);
  cut = batch();
  cut.targets.pop_back();
  EXPECT_THROW(trainer.step(cut), UserError);
  EXPECT_EQ(values(trainer), before);
}

TEST_F(TrainerTest, AnIterationTakesItsOwnLearningRate) {
  const AdapterLayout layout(llama_.config(), {.rank = 4});
  const auto trained = [&](const LrSchedule& schedule, int steps, std::vector<double>* rates) {
    Trainer trainer(
        llama_, layout, pairs(layout),
        {.schedule = schedule, .optimizer = {.kind = OptimizerKind::kSgd}, .max_grad_norm = 0});
    for (int i = 0; i < steps; ++i) {
      const StepResult result = trainer.step(batch());
      if (rates != nullptr) rates->push_back(result.learning_rate);
    }
    return values(trainer);
  };
  // A climb over four iterations, then the fall that would end one iteration after the last.
  const LrSchedule schedule{LrShape::kLinear, 0.5, 4, 8};
  std::vector<double> rates;
  trained(schedule, 8, &rates);
  EXPECT_EQ(rates, (std::vector<double>{0.125, 0.25, 0.375, 0.5, 0.5, 0.375, 0.25, 0.125}));
  // Not only said: the first update is that of a constant rate of a quarter of the peak.
  EXPECT_EQ(trained(schedule, 1, nullptr), trained({LrShape::kConstant, 0.125, 0, 8}, 1, nullptr));
}

TEST_F(TrainerTest, GradientsOfBatchesThatAreTakenTogetherCountByTheirTargets) {
  const AdapterLayout layout(llama_.config(), {.rank = 4});
  Batch few = batch();
  for (int i = 0; i < kRows * kLength; ++i) {
    if (i % 4 != 0) few.targets[static_cast<std::size_t>(i)] = kIgnoreIndex;
  }
  few.num_targets = kRows * kLength / 4;
  const Batch many = batch(7);
  Batch both = many;
  both.batch_size = 2 * kRows;
  both.tokens.insert(both.tokens.end(), few.tokens.begin(), few.tokens.end());
  both.targets.insert(both.targets.end(), few.targets.begin(), few.targets.end());
  both.num_targets += few.num_targets;
  both.num_inputs *= 2;
  const auto trained = [&](const std::vector<Batch>& batches) {
    Trainer trainer(llama_, layout, pairs(layout),
                    {.schedule = {LrShape::kConstant, 0.5, 0, 4},
                     .optimizer = {.kind = OptimizerKind::kSgd},
                     .accumulation_steps = static_cast<int>(batches.size()),
                     .max_grad_norm = 0});
    // Twice, so that the second update begins from nothing.
    for (int i = 0; i < 2; ++i) {
      for (const Batch& one : batches) trainer.step(one);
    }
    return values(trainer);
  };
  const std::vector<float> expected = trained({both}), together = trained({many, few});
  ASSERT_EQ(together.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(together[i], expected[i], 1e-5) << i;
  }
}

TEST_F(TrainerTest, AnUpdateLeavesNothingOfItsGradients) {
  const AdapterLayout layout(llama_.config(), {.rank = 4});
  const TrainOptions options{.schedule = {LrShape::kConstant, 0.5, 0, 4},
                             .optimizer = {.kind = OptimizerKind::kSgd},
                             .max_grad_norm = 0};
  Trainer trainer(llama_, layout, pairs(layout), options);
  trainer.step(batch());
  Trainer fresh(llama_, layout, trainer.pairs(), options);
  trainer.step(batch(7));
  fresh.step(batch(7));
  EXPECT_EQ(values(trainer), values(fresh));
}

TEST_F(TrainerTest, LongGradientsAreShortenedToTheNorm) {
  const AdapterLayout layout(llama_.config(), {.rank = 4});
  const std::vector<LoraPair> start = pairs(layout);
  double norm = 0.0;
  const auto step = [&](double most) {
    Trainer trainer(llama_, layout, start,
                    {.schedule = {LrShape::kConstant, 1.0, 0, 4},
                     .optimizer = {.kind = OptimizerKind::kSgd},
                     .max_grad_norm = most});
    const std::vector<float> before = values(trainer);
    norm = trainer.step(batch()).grad_norm;
    std::vector<float> change = values(trainer);
    for (std::size_t i = 0; i < change.size(); ++i) change[i] -= before[i];
    return l2_norm(change);
  };
  const double whole = step(0);
  EXPECT_NEAR(whole / norm, 1.0, 1e-4);
  EXPECT_NEAR(step(norm / 3) / norm, 1.0 / 3, 1e-4);
  EXPECT_EQ(step(norm * 3), whole);
}

}  // namespace
}  // namespace graft::llm
