// The optimizers and the learning-rate schedules against their formulas, written out in double.

#include "graft/llm/train/optimizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>
#include <random>
#include <vector>

#include "graft/llm/train/lr_schedule.h"
#include "graft/llm/user_error.h"

namespace graft::llm {
namespace {

// The step of one parameter's moments, as it stands in Algorithm 1 of arXiv:1412.6980 and Algorithm
// 2 of arXiv:1711.05101: m̂ / (√v̂ + ε).
struct ReferenceMoments {
  double m = 0;
  double v = 0;
  int t = 0;

  double direction(double g, const OptimizerOptions& o) {
    ++t;
    m = o.beta1 * m + (1 - o.beta1) * g;
    v = o.beta2 * v + (1 - o.beta2) * g * g;
    const double m_hat = m / (1 - std::pow(o.beta1, t));
    const double v_hat = v / (1 - std::pow(o.beta2, t));
    return m_hat / (std::sqrt(v_hat) + o.epsilon);
  }
};

struct ReferenceAdamW {
  ReferenceMoments moments;

  double step(double theta, double g, double eta, const OptimizerOptions& o) {
    return theta - eta * (moments.direction(g, o) + o.weight_decay * theta);
  }
};

struct ReferenceAdam {
  ReferenceMoments moments;

  double step(double theta, double g, double alpha, const OptimizerOptions& o) {
    return theta - alpha * moments.direction(g, o);
  }
};

struct ReferenceSgd {
  double step(double theta, double g, double rate, const OptimizerOptions&) {
    return theta - rate * g;
  }
};

// 60 updates of many parameters, each against the formula that `Reference` spells out.
template <class Reference>
void expect_follows(const OptimizerOptions& options) {
  constexpr std::size_t kSize = 257;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> parameters(kSize);
  for (float& p : parameters) p = normal(random);
  std::vector<double> expected(parameters.begin(), parameters.end());
  std::vector<Reference> references(kSize);
  Optimizer optimizer(kSize, options);

  for (int step = 1; step <= 60; ++step) {
    const double rate = 0.01 / step;
    std::vector<float> gradients(kSize);
    for (std::size_t i = 0; i < kSize; ++i) {
      // Sizes from 1e-6 to 10, and some that are exactly zero.
      gradients[i] =
          i % 7 == 0 ? 0.0f : normal(random) * std::pow(10.0f, static_cast<float>(i % 8) - 6);
      expected[i] =
          references[i].step(expected[i], 0.5 * static_cast<double>(gradients[i]), rate, options);
    }
    optimizer.step(parameters, gradients, rate, /*gradient_scale=*/0.5);
  }
  EXPECT_EQ(optimizer.steps(), 60);
  for (std::size_t i = 0; i < kSize; ++i) {
    // 60 updates of about 1e-2 / step, each rounded to float32.
    ASSERT_NEAR(static_cast<double>(parameters[i]), expected[i],
                60 * 6e-8 * (1 + std::abs(expected[i])))
        << "parameter " << i;
  }
}

TEST(AdamW, FollowsTheFormula) { expect_follows<ReferenceAdamW>({.weight_decay = 0.1}); }

TEST(Adam, FollowsTheFormulaAndDecaysNothing) {
  expect_follows<ReferenceAdam>({.kind = OptimizerKind::kAdam, .weight_decay = 0.1});
}

TEST(Sgd, FollowsTheFormulaAndKeepsNoMoments) {
  expect_follows<ReferenceSgd>({.kind = OptimizerKind::kSgd, .weight_decay = 0.1});
  const Optimizer optimizer(3, {.kind = OptimizerKind::kSgd});
  EXPECT_TRUE(optimizer.state().first_moment.empty());
  EXPECT_TRUE(optimizer.state().second_moment.empty());
}

TEST(Optimizer, RefusesTheStateOfAnother) {
  const Optimizer sgd(3, {.kind = OptimizerKind::kSgd});
  const Optimizer larger(4, {});
  Optimizer optimizer(3, {});
  EXPECT_THROW(optimizer.restore(sgd.state()), UserError);
  EXPECT_THROW(optimizer.restore(larger.state()), UserError);
  EXPECT_NO_THROW(optimizer.restore(Optimizer(3, {.kind = OptimizerKind::kAdam}).state()));
}

TEST(Optimizer, KnowsItsNames) {
  EXPECT_EQ(optimizer_named("adamw"), OptimizerKind::kAdamW);
  EXPECT_EQ(optimizer_named("adam"), OptimizerKind::kAdam);
  EXPECT_EQ(optimizer_named("sgd"), OptimizerKind::kSgd);
  EXPECT_THROW(optimizer_named("Adam"), UserError);
}

TEST(AdamW, FirstStepMovesByTheRateAgainstTheGradientsSign) {
  std::vector<float> parameters = {1.0f, 1.0f};
  Optimizer optimizer(2, {.weight_decay = 0.0});
  optimizer.step(parameters, std::vector<float>{3.0f, -1e-3f}, 0.25);
  EXPECT_NEAR(parameters[0], 0.75, 1e-5);
  EXPECT_NEAR(parameters[1], 1.25, 1e-5);
}

TEST(AdamW, NormOfGradients) {
  EXPECT_DOUBLE_EQ(l2_norm(std::vector<float>{3.0f, -4.0f}), 5.0);
  EXPECT_DOUBLE_EQ(l2_norm({}), 0.0);
  // Squares that overflow float32.
  EXPECT_NEAR(l2_norm(std::vector<float>{3e30f, 4e30f}) / 5e30, 1.0, 1e-6);
}

TEST(LrSchedule, WarmsUpLinearlyToThePeak) {
  for (const LrShape shape : {LrShape::kConstant, LrShape::kLinear, LrShape::kCosine}) {
    const LrSchedule schedule{shape, 2e-3, 4, 20};
    EXPECT_DOUBLE_EQ(schedule.rate(1), 0.5e-3);
    EXPECT_DOUBLE_EQ(schedule.rate(2), 1.0e-3);
    EXPECT_DOUBLE_EQ(schedule.rate(4), 2e-3);
    EXPECT_DOUBLE_EQ(schedule.rate(5), 2e-3);  // the first one after the warm-up
  }
}

TEST(LrSchedule, FollowsItsShape) {
  const LrSchedule constant{LrShape::kConstant, 1.0, 4, 20};
  const LrSchedule linear{LrShape::kLinear, 1.0, 4, 20};
  const LrSchedule cosine{LrShape::kCosine, 1.0, 4, 20};
  for (int iteration = 5; iteration <= 20; ++iteration) {
    const double done = (iteration - 5) / 16.0;  // of the 16 iterations after the warm-up
    EXPECT_DOUBLE_EQ(constant.rate(iteration), 1.0);
    EXPECT_NEAR(linear.rate(iteration), 1.0 - done, 1e-12);
    EXPECT_NEAR(cosine.rate(iteration), (1.0 + std::cos(std::numbers::pi * done)) / 2, 1e-12);
  }
  EXPECT_GT(linear.rate(20), 0.0);
  EXPECT_NEAR(linear.rate(21), 0.0, 1e-12);
}

TEST(LrSchedule, NeedsNoWarmupAndOutlastsAWarmupThatIsTooLong) {
  const LrSchedule schedule{LrShape::kCosine, 1.0, 0, 10};
  EXPECT_DOUBLE_EQ(schedule.rate(1), 1.0);
  const LrSchedule all_warmup{LrShape::kLinear, 1.0, 10, 5};
  EXPECT_DOUBLE_EQ(all_warmup.rate(5), 0.5);
}

TEST(LrSchedule, KnowsItsNames) {
  EXPECT_EQ(lr_shape_named("constant"), LrShape::kConstant);
  EXPECT_EQ(lr_shape_named("linear"), LrShape::kLinear);
  EXPECT_EQ(lr_shape_named("cosine"), LrShape::kCosine);
  EXPECT_THROW(lr_shape_named("Cosine"), UserError);
}

}  // namespace
}  // namespace graft::llm
