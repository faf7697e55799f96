#include "graft/linear_cross_entropy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "graft/error.h"
#include "linear_cross_entropy/reference.h"
#include "support/compare.h"
#include "support/isas.h"
#include "support/places.h"
#include "support/tensor.h"

namespace graft {
namespace {

using test::Layout;
using test::Tensor;

struct Shape {
  std::int64_t m, k, v;
};

struct Case {
  Tensor x, w, targets, losses, dx;
  Shape shape;

  // About one row in four is ignored.
  Case(DType x_dtype, DType w_dtype, const Shape& s, const Layout& layout = {})
      : x(x_dtype, {s.m, s.k}, layout),
        w(w_dtype, {s.v, s.k}),
        targets(DType::kInt32, {s.m}),
        losses(DType::kFloat32, {s.m}),
        dx(x_dtype, {s.m, s.k}, layout),
        shape(s) {
    x.fill_random(1);
    w.fill_random(2, 2 / std::sqrt(static_cast<double>(std::max<std::int64_t>(1, s.k))));
    for (std::int64_t i = 0; i < s.m; ++i) {
      targets.set(i, i % 4 == 2 ? -100 : static_cast<double>((i * 7919 + s.v - 1) % s.v));
    }
    losses.fill(-7), dx.fill(-7);
  }

  LinearCrossEntropy params(const Weight& weight, bool gradient = true) const {
    LinearCrossEntropy p;
    p.x = x, p.weight = weight, p.targets = targets, p.losses = losses;
    if (gradient) p.dx = dx;
    return p;
  }
};

// The composed computation in float32: logits, log-softmax and the product of its gradient, whose
// factors round to the weight's type. Sums run in order.
struct Plain {
  std::vector<double> losses, dx;

  explicit Plain(const Case& c) {
    const auto factor = [type = c.w.view().dtype()](double value) {
      return test::rounded(static_cast<float>(value), type);
    };
    for (std::int64_t i = 0; i < c.shape.m; ++i) {
      std::vector<float> z(static_cast<std::size_t>(c.shape.v)), row;
      for (std::int64_t k = 0; k < c.shape.k; ++k)
        row.push_back(factor(c.x.get(i * c.shape.k + k)));
      for (std::int64_t v = 0; v < c.shape.v; ++v) {
        float& sum = z[static_cast<std::size_t>(v)];
        for (std::int64_t k = 0; k < c.shape.k; ++k) {
          sum += row[static_cast<std::size_t>(k)] * static_cast<float>(c.w.get(v * c.shape.k + k));
        }
      }
      const bool ignored = c.targets.get(i) == -100;
      float loss = 0;
      if (!ignored) {
        const auto target = static_cast<std::size_t>(c.targets.get(i));
        const float target_logit = z[target];
        const float max = *std::max_element(z.begin(), z.end());
        float sum = 0;
        for (float& value : z) sum += value = std::exp(value - max);
        for (float& value : z) value /= sum;
        z[target] -= 1;
        loss = max + std::log(sum) - target_logit;
      }
      losses.push_back(loss);
      for (float& value : z) value = factor(value);
      for (std::int64_t k = 0; k < c.shape.k; ++k) {
        float sum = 0;
        for (std::int64_t v = 0; v < c.shape.v && !ignored; ++v) {
          sum += z[static_cast<std::size_t>(v)] * static_cast<float>(c.w.get(v * c.shape.k + k));
        }
        Tensor one(c.x.view().dtype(), {1});
        one.set(0, sum);
        dx.push_back(one.get(0));
      }
    }
  }
};

void check_case(const test::Place& place, const Case& c) {
  const DType x_dtype = c.x.view().dtype(), w_dtype = c.w.view().dtype();
  SCOPED_TRACE(std::string(name_of(x_dtype)) + " x, " + name_of(w_dtype) + " w, " +
               c.x.view().shape_string() + " to " + std::to_string(c.shape.v));
  Tensor losses(DType::kFloat32, {c.shape.m}), dx(DType::kFloat32, {c.shape.m, c.shape.k});
  LinearCrossEntropy reference = c.params(Weight(c.w));
  reference.losses = losses, reference.dx = dx;
  reference::linear_cross_entropy(reference);
  const Plain plain(c);
  // What multiplies decides what can be expected: see Weight.
  const DType dtype = test::epsilon(w_dtype) > test::epsilon(x_dtype) ? w_dtype : x_dtype;

  std::vector<Weight> weights{c.w.view()};
  if (!place.is_cuda()) weights.push_back(Weight::packed(c.w, w_dtype));
  for (const bool gradient : {true, false}) {
    for (const Weight& weight : weights) {
      const Case out = c;
      place.run(linear_cross_entropy, out.params(weight, gradient));
      EXPECT_TRUE(test::as_good_as(out.losses.values(), plain.losses, losses.values(), w_dtype));
      if (gradient) {
        EXPECT_TRUE(test::as_good_as(out.dx.values(), plain.dx, dx.values(), dtype));
      } else {
        EXPECT_EQ(out.dx.bytes(), c.dx.bytes());
      }
      EXPECT_TRUE(out.losses.guarded());
      EXPECT_TRUE(out.dx.guarded());
    }
  }
}

TEST(LinearCrossEntropyEverywhere, MatchesTheReferenceOnHostileShapes) {
  const std::vector<Shape> shapes = {{0, 3, 5},     {1, 1, 1},    {2, 3, 7},    {3, 0, 5},
                                     {13, 17, 31},  {14, 16, 32}, {15, 33, 33}, {5, 31, 1039},
                                     {197, 11, 67}, {29, 64, 515}};
  test::on_each_place([&](const test::Place& place) {
    for (const Shape& shape : shapes) {
      for (const DType w_dtype : place.dtypes()) {
        for (const DType x_dtype : place.dtypes()) {
          const Layout dense, gaps{.offset = 1, .gap = 5, .order = {}};
          check_case(place, Case(x_dtype, w_dtype, shape, x_dtype == w_dtype ? dense : gaps));
        }
      }
    }
  });
}

TEST(LinearCrossEntropy, GradientIsTheSlopeOfTheReference) {
  Case c(DType::kFloat32, DType::kFloat32, {2, 5, 11});
  reference::linear_cross_entropy(c.params(Weight(c.w)));
  const std::vector<double> gradient = c.dx.values();
  for (std::int64_t i = 0; i < c.x.size(); ++i) {
    const double at = c.x.get(i);
    double loss[2], point[2];
    for (const int side : {0, 1}) {
      c.x.set(i, at + (side == 0 ? -0.01 : 0.01));
      point[side] = c.x.get(i);
      reference::linear_cross_entropy(c.params(Weight(c.w), false));
      loss[side] = c.losses.get(i / 5);
    }
    c.x.set(i, at);
    EXPECT_NEAR((loss[1] - loss[0]) / (point[1] - point[0]), gradient[static_cast<std::size_t>(i)],
                1e-3);
  }
}

TEST(LinearCrossEntropyEverywhere, LargeLogitsNeitherOverflowNorLoseTheLoss) {
  test::on_each_place([](const test::Place& place) {
    // Logits 0, ±300, ±600, ...: the largest is certain.
    Case c(DType::kFloat32, DType::kFloat32, {2, 1, 40});
    for (std::int64_t v = 0; v < 40; ++v) c.w.set(v, 300.0 * static_cast<double>(v));
    c.x.set(0, 1), c.x.set(1, -1);
    c.targets.set(0, 39), c.targets.set(1, 39);
    place.run(linear_cross_entropy, c.params(Weight(c.w)));
    EXPECT_TRUE(test::close(c.losses.values(), {0, 39 * 300}, 1e-2));
    EXPECT_TRUE(test::close(c.dx.values(), {0, -39 * 300}, 1e-2));
  });
}

TEST(LinearCrossEntropyEverywhere, NanStaysNan) {
  test::on_each_place([](const test::Place& place) {
    Case c(DType::kFloat32, DType::kFloat32, {2, 3, 100});
    c.x.set(1, std::numeric_limits<double>::quiet_NaN());
    place.run(linear_cross_entropy, c.params(Weight(c.w)));
    EXPECT_TRUE(std::isnan(c.losses.get(0)));
    EXPECT_TRUE(std::isnan(c.dx.get(0)));
    EXPECT_FALSE(std::isnan(c.losses.get(1)));
  });
}

// The CPU throws, below; a GPU is not waited for.
TEST(LinearCrossEntropyEverywhere, ATargetOutsideTheVocabularyIsNanWhereNobodyWaits) {
  if (!test::testing_on_cuda()) GTEST_SKIP() << "the CPU refuses such a target";
  test::on_each_place([](const test::Place& place) {
    Case c(DType::kFloat32, DType::kFloat32, {4, 3, 100});
    c.targets.set(0, 100), c.targets.set(1, -1), c.targets.set(2, -100), c.targets.set(3, 99);
    place.run(linear_cross_entropy, c.params(Weight(c.w)));
    for (std::int64_t row = 0; row < 4; ++row) {
      EXPECT_EQ(std::isnan(c.losses.get(row)), row < 2) << row;
      for (std::int64_t i = 0; i < 3; ++i) {
        EXPECT_EQ(std::isnan(c.dx.get(3 * row + i)), row < 2) << row;
      }
    }
  });
}

// More rows than a chunk has, of a GPU's or of the CPU's.
TEST(LinearCrossEntropyEverywhere, ChunksAreTheSameRows) {
  test::on_each_place([](const test::Place& place) {
    const Case c(DType::kFloat32, DType::kFloat32, {300, 2, 200000});
    place.run(linear_cross_entropy, c.params(Weight(c.w)));
    for (const std::int64_t row : {0, 127, 128, 299}) {
      Case one(DType::kFloat32, DType::kFloat32, {1, 2, 200000});
      for (std::int64_t i = 0; i < 2; ++i) one.x.set(i, c.x.get(2 * row + i));
      one.w = c.w, one.targets.set(0, c.targets.get(row));
      reference::linear_cross_entropy(one.params(Weight(one.w)));
      EXPECT_NEAR(c.losses.get(row), one.losses.get(0), 1e-5);
      for (std::int64_t i = 0; i < 2; ++i) {
        EXPECT_NEAR(c.dx.get(2 * row + i), one.dx.get(i), 1e-5);
      }
    }
  });
}

TEST(LinearCrossEntropy, SameBitsForAnyNumberOfThreads) {
  std::vector<Case> results;
  for (const int threads : {1, 2, 3}) {
    results.emplace_back(DType::kFloat32, DType::kFloat32, Shape{151, 37, 2050});
    test::with_threads(threads, [&] {
      Context context;
      linear_cross_entropy(context, results.back().params(Weight(results.back().w)));
    });
    EXPECT_EQ(results.back().losses.bytes(), results.front().losses.bytes());
    EXPECT_EQ(results.back().dx.bytes(), results.front().dx.bytes());
  }
}

std::string error_of(const LinearCrossEntropy& params) {
  Context context;
  try {
    linear_cross_entropy(context, params);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(LinearCrossEntropy, RefusesWhatItCannotTakeAndTouchesNothing) {
  Case c(DType::kFloat32, DType::kFloat32, {3, 4, 10});
  const std::vector<std::byte> losses = c.losses.bytes(), dx = c.dx.bytes();
  c.targets.set(1, 10);
  EXPECT_EQ(error_of(c.params(Weight(c.w))),
            "[linear_cross_entropy] targets: expected 0 to 9, or -100 to ignore, got 10 at row 1");
  c.targets.set(1, -1);
  EXPECT_NE(error_of(c.params(Weight(c.w))), "");
  c.targets.set(1, 0);
  const Weight forward = Weight::packed(c.w, DType::kFloat32, Packing::kForward);
  EXPECT_NE(error_of(c.params(forward)), "");
  EXPECT_EQ(c.losses.bytes(), losses);
  EXPECT_EQ(c.dx.bytes(), dx);
  EXPECT_EQ(error_of(c.params(forward, false)), "");
  LinearCrossEntropy params = c.params(Weight(c.w));
  params.losses = Tensor(DType::kFloat32, {4});
  EXPECT_EQ(error_of(params), "[linear_cross_entropy] losses: expected (3), got (4)");
}

}  // namespace
}  // namespace graft
