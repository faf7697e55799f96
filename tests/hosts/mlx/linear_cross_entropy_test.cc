#include "graft/mlx/linear_cross_entropy.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "graft/mlx/fusion.h"
#include "kernels_here.h"
#include "truth.h"

namespace graft::mlx {
namespace {

using testing::expect_as_good_as;
using testing::Matrix;
using testing::matrix;
using testing::max_error;
using testing::normal;
using testing::values;

using Arrays = std::vector<mx::array>;

struct Truth {
  std::vector<double> losses;
  Matrix dx;  // rows unscaled
};

Truth truth(const mx::array& x, const mx::array& w, const std::vector<int>& targets, int ignore) {
  const Matrix z = matrix(x) * transpose(matrix(w));
  Matrix dz(z.rows, z.cols);
  Truth t{std::vector<double>(z.rows, 0.0), Matrix(0, 0)};
  for (std::size_t i = 0; i < z.rows; ++i) {
    if (targets[i] == ignore) continue;
    double most = -INFINITY;
    for (std::size_t v = 0; v < z.cols; ++v) most = std::max(most, z.at(i, v));
    double sum = 0;
    for (std::size_t v = 0; v < z.cols; ++v) sum += std::exp(z.at(i, v) - most);
    const auto target = static_cast<std::size_t>(targets[i]);
    t.losses[i] = most + std::log(sum) - z.at(i, target);
    for (std::size_t v = 0; v < z.cols; ++v) {
      dz.at(i, v) = std::exp(z.at(i, v) - most) / sum - (v == target ? 1.0 : 0.0);
    }
  }
  t.dx = dz * matrix(w);
  return t;
}

mx::array composed(const mx::array& x, const mx::array& w, const mx::array& targets, int ignore) {
  const auto z = mx::matmul(x, mx::transpose(w));
  const auto ignored = mx::equal(targets, mx::array(ignore));
  const auto safe = mx::where(ignored, mx::array(0), targets);
  const auto picked = mx::squeeze(mx::take_along_axis(z, mx::expand_dims(safe, -1), -1), -1);
  return mx::where(ignored, mx::array(0.0f), mx::subtract(mx::logsumexp(z, -1), picked));
}

const std::vector<int> kTargets{3, -100, 0, 96, 41, -100, 17, 17};

struct Case {
  mx::array x = normal({2, 4, 24}, 1);
  mx::array w = normal({97, 24}, 2, 0.3f);
  mx::array targets = mx::array(kTargets.begin(), {2, 4});
  mx::array dlosses = normal({2, 4}, 3);
};

TEST(LinearCrossEntropy, LossesAndGradient) {
  const Case in;
  const auto weight = pack(in.w);
  reset_fusion_report();
  const auto [losses, dx] = mx::vjp(
      [&](const Arrays& v) { return Arrays{linear_cross_entropy(v[0], weight, in.targets)}; },
      {in.x}, {in.dlosses});
  const auto [losses2, dx2] =
      mx::vjp([&](const Arrays& v) { return Arrays{composed(v[0], in.w, in.targets, -100)}; },
              {in.x}, {in.dlosses});
  auto t = truth(in.x, in.w, kTargets, -100);
  expect_as_good_as(losses[0], losses2[0], t.losses);
  const auto scale = values(in.dlosses);
  for (std::size_t i = 0; i < t.dx.data.size(); ++i) t.dx.data[i] *= scale[i / 24];
  expect_as_good_as(dx[0], dx2[0], t.dx);
  EXPECT_EQ(losses[0].shape(), (mx::Shape{2, 4}));
  testing::expect_fused();
}

TEST(LinearCrossEntropy, AnotherIgnoredTargetAndPlainWeight) {
  const Case in;
  const auto t = truth(in.x, in.w, {3, 1, 0, 96, 41, 17, 17, 17}, 17);
  const auto targets = mx::array({3, 1, 0, 96, 41, 17, 17, 17}, {2, 4});
  EXPECT_LE(max_error(linear_cross_entropy(in.x, in.w, targets, 17), t.losses), 1e-5);
  const auto wide = mx::astype(targets, mx::int64);
  EXPECT_LE(max_error(linear_cross_entropy(in.x, in.w, wide, 17), t.losses), 1e-5);
}

mx::array mean_loss(const Weight& weight, const mx::array& x, const mx::array& targets) {
  return mx::mean(linear_cross_entropy(x, weight, targets));
}

// The hidden gradient is there however the loss is asked for first.
TEST(LinearCrossEntropy, GradientAfterTheLossWasEvaluated) {
  const Case in;
  const auto weight = pack(in.w);
  auto t = truth(in.x, in.w, kTargets, -100);
  const Matrix expected = (1.0 / 8) * t.dx;
  const auto early = mx::grad([&](const mx::array& x) {
    const auto loss = mean_loss(weight, x, in.targets);
    mx::eval(loss);
    return loss;
  });
  EXPECT_LE(max_error(early(in.x), expected), 1e-6);
  const auto usual = mx::grad([&](const mx::array& x) { return mean_loss(weight, x, in.targets); });
  EXPECT_LE(max_error(usual(in.x), expected), 1e-6);
}

TEST(LinearCrossEntropy, Compile) {
  const Case in;
  const auto weight = pack(in.w);
  const auto step = mx::compile(std::function<Arrays(const Arrays&)>([&](const Arrays& v) {
    const auto loss = [&](const mx::array& x) { return mean_loss(weight, x, v[1]); };
    auto [value, gradient] = mx::value_and_grad(loss)(v[0]);
    // Once more without a gradient: MLX must not merge this into the node that has one, or back.
    return Arrays{value, gradient, loss(v[0])};
  }));
  for (std::uint32_t run = 0; run < 2; ++run) {
    const auto x = normal({2, 4, 24}, 10 + run);
    const auto t = truth(x, in.w, kTargets, -100);
    double mean = 0;
    for (const double loss : t.losses) mean += loss / 8;
    const auto out = step({x, in.targets});
    EXPECT_NEAR(values(out[0])[0], mean, 1e-5);
    EXPECT_LE(max_error(out[1], (1.0 / 8) * t.dx), 1e-6);
    EXPECT_NEAR(values(out[2])[0], mean, 1e-5);
  }
}

TEST(LinearCrossEntropy, OtherDerivatives) {
  const Case in;
  const auto weight = pack(in.w);
  const auto f = [](auto op) { return [op](const Arrays& v) { return Arrays{op(v[0])}; }; };
  const auto fused =
      f([&](const mx::array& x) { return linear_cross_entropy(x, weight, in.targets); });
  const auto plain = f([&](const mx::array& x) { return composed(x, in.w, in.targets, -100); });
  const auto tangent = normal({2, 4, 24}, 5);
  EXPECT_LE(max_error(mx::jvp(fused, {in.x}, {tangent}).second[0],
                      values(mx::jvp(plain, {in.x}, {tangent}).second[0])),
            1e-4);
  // A Hessian-vector product, the gradient of a gradient.
  const auto slope = [&](auto op) {
    return [&, op](const mx::array& x) {
      const auto first = mx::grad([&](const mx::array& v) { return mx::sum(op(Arrays{v})[0]); })(x);
      return mx::sum(mx::multiply(first, tangent));
    };
  };
  EXPECT_LE(max_error(mx::grad(slope(fused))(in.x), values(mx::grad(slope(plain))(in.x))), 1e-4);
  // The plain weight's own gradient.
  const auto dw = mx::grad(
      [&](const mx::array& w) { return mx::sum(linear_cross_entropy(in.x, w, in.targets)); })(in.w);
  const auto dw2 = mx::grad(
      [&](const mx::array& w) { return mx::sum(composed(in.x, w, in.targets, -100)); })(in.w);
  EXPECT_LE(max_error(dw, values(dw2)), 1e-4);
}

TEST(LinearCrossEntropy, Vmap) {
  const Case in;
  const auto weight = pack(in.w);
  const auto losses = [&](const mx::array& x, const mx::array& targets) {
    return linear_cross_entropy(x, weight, targets);
  };
  const auto t = truth(in.x, in.w, kTargets, -100);
  EXPECT_LE(max_error(mx::vmap(losses)(in.x, in.targets), t.losses), 1e-5);
  const auto per_example = [&](const mx::array& x, const mx::array& targets) {
    return mx::grad([&](const mx::array& v) { return mx::sum(losses(v, targets)); })(x);
  };
  EXPECT_LE(max_error(mx::vmap(per_example)(in.x, in.targets), t.dx), 1e-5);
}

// Targets are data: they are looked at when the loss is computed, and the caller hears of it.
TEST(LinearCrossEntropy, TargetOutsideTheVocabulary) {
  const Case in;
  const auto weight = pack(in.w);
  const auto bad = mx::array({3, 1, 0, 97, 41, 17, 17, 17}, {2, 4});
  if (!testing::has_kernels("linear_cross_entropy")) {
    GTEST_SKIP() << "MLX's own ops, of which the loss is composed here, do not look at targets";
  }
  if (testing::on_cuda()) {
    // Nobody waits for the device, so that it can only be seen in the result.
    const auto losses = values(linear_cross_entropy(in.x, weight, bad));
    for (std::size_t i = 0; i < losses.size(); ++i) EXPECT_EQ(std::isnan(losses[i]), i == 3);
    return;
  }
  EXPECT_THROW(
      {
        try {
          mx::eval(linear_cross_entropy(in.x, weight, bad));
        } catch (const std::exception& error) {
          EXPECT_NE(std::string(error.what()).find("97"), std::string::npos) << error.what();
          throw;
        }
      },
      std::exception);
  // And the stream is as good as before.
  const auto t = truth(in.x, in.w, kTargets, -100);
  EXPECT_LE(max_error(linear_cross_entropy(in.x, weight, in.targets), t.losses), 1e-5);
}

TEST(LinearCrossEntropy, RejectsWhatDoesNotFit) {
  const Case in;
  const auto weight = pack(in.w);
  EXPECT_THROW(linear_cross_entropy(normal({2, 4, 23}, 1), weight, in.targets),
               std::invalid_argument);
  EXPECT_THROW(linear_cross_entropy(in.x, weight, mx::zeros({8}, mx::int32)),
               std::invalid_argument);
  EXPECT_THROW(linear_cross_entropy(in.x, weight, mx::zeros({2, 4})), std::invalid_argument);
  EXPECT_THROW(linear_cross_entropy(in.x, Weight(), in.targets), std::invalid_argument);
}

}  // namespace
}  // namespace graft::mlx
