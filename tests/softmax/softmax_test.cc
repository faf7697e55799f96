#include "graft/softmax.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "backend/bfloat16.h"
#include "checks.h"
#include "graft/error.h"
#include "softmax/reference.h"
#include "support/compare.h"
#include "support/errors.h"
#include "support/isas.h"
#include "support/large_outputs.h"
#include "support/places.h"
#include "support/slopes.h"
#include "support/tensor.h"

namespace graft {
namespace {

using test::Layout;
using test::Tensor;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

struct Case {
  Tensor x, y, dy, dx;
  float scale;

  Case(DType dtype, std::int64_t m, std::int64_t n, float factor, const Layout& layout = {})
      : x(dtype, {m, n}, layout), y(x), dy(x), dx(x), scale(factor) {
    x.fill_random(1), dy.fill_random(2);
    y.fill(-7), dx.fill(-7);
  }

  SoftmaxForward forward() const { return {x, scale, y}; }
  SoftmaxBackward backward() const { return {dy, y, scale, dx}; }
};

// One row through the reference.
std::vector<double> softmax_of(const std::vector<double>& row, float scale = 1.0f) {
  Tensor x(DType::kFloat32, {1, static_cast<std::int64_t>(row.size())}), y(x);
  for (std::size_t i = 0; i < row.size(); ++i) x.set(static_cast<std::int64_t>(i), row[i]);
  reference::softmax_forward({x, scale, y});
  return y.values();
}

TEST(Softmax, GivesWhatIsWorkedOutByHand) {
  const double ln2 = std::log(2.0), ln3 = std::log(3.0);
  EXPECT_TRUE(test::close(softmax_of({0, ln2, ln3}), {1. / 6, 2. / 6, 3. / 6}, 1e-7));
  EXPECT_TRUE(test::close(softmax_of({2 * ln2, 0}, 0.5f), {2. / 3, 1. / 3}, 1e-7));
  EXPECT_TRUE(test::close(softmax_of({1e30, 1e30, -1e30}), {0.5, 0.5, 0}, 0));
  EXPECT_TRUE(test::close(softmax_of({-3e38}, 100), {1}, 0));
}

TEST(Softmax, InfinityMasksAndAWhollyMaskedRowIsNan) {
  EXPECT_TRUE(test::close(softmax_of({-kInfinity, 3, 3}), {0, 0.5, 0.5}, 0));
  EXPECT_TRUE(test::close(softmax_of({-kInfinity, -kInfinity}), {kNan, kNan}, 0));
  EXPECT_TRUE(test::close(softmax_of({1, kInfinity}), {kNan, kNan}, 0));
  EXPECT_TRUE(test::close(softmax_of({kNan, 1}), {kNan, kNan}, 0));
}

// Each row is a softmax of its own.
TEST(Softmax, GradientIsWhatIsWorkedOutByHand) {
  Case c(DType::kFloat32, 2, 2, 2.0f);
  const double y[] = {0.25, 0.75, 0.5, 0.5}, dy[] = {1, 3, -1, 1};
  for (std::int64_t i = 0; i < 4; ++i) c.y.set(i, y[i]), c.dy.set(i, dy[i]);
  reference::softmax_backward(c.backward());
  EXPECT_EQ(c.dx.values(), (std::vector<double>{-0.75, 0.75, -1, 1}));
}

TEST(Softmax, GradientIsTheSlopeOfTheReference) {
  Case c(DType::kFloat32, 3, 5, 1.7f);
  reference::softmax_forward(c.forward());
  reference::softmax_backward(c.backward());
  const auto loss = [&c] {
    reference::softmax_forward(c.forward());
    return test::dot(c.y, c.dy);
  };
  test::expect_slopes(loss, c.x, c.dx, 0.005, 1e-4);
}

// The same values whatever they are kept in and however they lie, rounded once at the end.
TEST(Softmax, ReferenceTakesEveryDtypeAndLayout) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    SCOPED_TRACE(name_of(dtype));
    const Case c(dtype, 7, 13, 0.3f, {.offset = 1, .gap = 3, .order = {}});
    Case wide(DType::kFloat32, 7, 13, 0.3f);
    wide.x = c.x.as(DType::kFloat32), wide.dy = c.dy.as(DType::kFloat32);
    reference::softmax_forward(c.forward());
    reference::softmax_forward(wide.forward());
    EXPECT_EQ(c.y.values(), wide.y.as(dtype).values());
    wide.y = c.y.as(DType::kFloat32);
    reference::softmax_backward(c.backward());
    reference::softmax_backward(wide.backward());
    EXPECT_EQ(c.dx.values(), wide.dx.as(dtype).values());
    EXPECT_TRUE(c.y.guarded());
    EXPECT_TRUE(c.dx.guarded());
  }
}

// The composed computation: every operation rounds its result to the dtype; sums are in float32.
struct Plain {
  std::vector<double> y, dx;

  // dx is that of `given`, the y which backward is called with.
  Plain(const Case& c, const Tensor& given, std::int64_t m, std::int64_t n, DType dtype) {
    const auto r = [dtype](float value) { return test::rounded(value, dtype); };
    const auto at = [](const Tensor& t, std::int64_t i) { return static_cast<float>(t.get(i)); };
    for (std::int64_t first = 0; first < m * n; first += n) {
      std::vector<float> z;
      float largest = -INFINITY, sum = 0, dot = 0;
      for (std::int64_t i = 0; i < n; ++i) {
        z.push_back(r(at(c.x, first + i) * c.scale));
        largest = std::max(largest, z.back());
      }
      for (float& value : z) sum += value = r(std::exp(r(value - largest)));
      for (std::int64_t i = 0; i < n; ++i) {
        y.push_back(r(z[static_cast<std::size_t>(i)] / r(sum)));
        dot += r(at(c.dy, first + i) * at(given, first + i));
      }
      for (std::int64_t i = 0; i < n; ++i) {
        const float apart = r(at(c.dy, first + i) - r(dot));
        dx.push_back(r(r(apart * at(given, first + i)) * c.scale));
      }
    }
  }
};

void check_case(const test::Place& place, DType dtype, std::int64_t m, std::int64_t n, float scale,
                const Layout& layout, double spread = 1) {
  SCOPED_TRACE(std::string(name_of(dtype)) + " " + std::to_string(m) + "x" + std::to_string(n) +
               " scale " + std::to_string(scale));
  Case c(dtype, m, n, scale, layout);
  c.x.fill_random(1, spread);
  place.run(softmax_forward, c.forward());
  place.run(softmax_backward, c.backward());
  Case truth = c;
  truth.y = truth.y.as(DType::kFloat32), truth.dx = truth.dx.as(DType::kFloat32);
  reference::softmax_backward(truth.backward());  // of the kernel's y
  reference::softmax_forward(truth.forward());
  const Plain plain(c, c.y, m, n, dtype);
  EXPECT_TRUE(test::as_good_as(c.y.values(), plain.y, truth.y.values(), dtype));
  EXPECT_TRUE(test::as_good_as(c.dx.values(), plain.dx, truth.dx.values(), dtype));
  for (const Tensor* t : {&c.x, &c.y, &c.dy, &c.dx}) EXPECT_TRUE(t->guarded());
}

TEST(SoftmaxEverywhere, MatchesTheReferenceOnHostileShapes) {
  const std::vector<std::pair<int, int>> shapes = {
      {0, 5},     {3, 0},     {1, 1},     {7, 1},    {1, 7},     {3, 15},
      {2, 16},    {3, 17},    {5, 31},    {4, 64},   {13, 97},   {17, 576},
      {2, 16384}, {1, 16385}, {3, 20011}, {1100, 3}, {211, 129}, {300, 512}};
  test::on_each_place([&](const test::Place& place) {
    for (const auto& [m, n] : shapes) {
      for (const DType dtype : place.dtypes()) {
        check_case(place, dtype, m, n, 1.0f, {});
        check_case(place, dtype, m, n, 0.35f, {.offset = 1, .gap = 3, .order = {}}, 20);
      }
    }
  });
}

TEST(Softmax, LargeOutputsAreTheSame) {
  test::expect_same_large_outputs(
      [](DType dtype, std::int64_t m, std::int64_t n, const Layout& layout) {
        return Case(dtype, m, n, 0.7f, layout);
      },
      [](Context& context, const Case& c) {
        softmax_forward(context, c.forward());
        softmax_backward(context, c.backward());
      },
      [](Context& context, const Case& c, const auto& part) {
        softmax_forward(context, {part(c.x), c.scale, part(c.y)});
        softmax_backward(context, {part(c.dy), part(c.y), c.scale, part(c.dx)});
      });
}

// In float32 the exponentials are right to their last digits, however far below the largest.
TEST(SoftmaxEverywhere, SmallSharesAreAccurate) {
  test::on_each_place([](const test::Place& place) {
    for (const float scale : {1.0f, 0.125f, 3.0f}) {
      constexpr std::int64_t kCount = 2001;
      Case c(DType::kFloat32, 1, kCount, scale);
      for (std::int64_t i = 0; i < kCount; ++i) {
        c.x.set(i, -87.0 / scale * static_cast<double>(i) / (kCount - 1));
      }
      place.run(softmax_forward, c.forward());
      const auto fast = c.y.values();
      reference::softmax_forward(c.forward());
      const auto truth = c.y.values();
      for (std::size_t i = 0; i < fast.size(); ++i) {
        // e^t is off by |t| roundings for one of t as a float32: two of them, as in scale · x and
        // the difference of that from the largest, and a few for the sum and the exponential.
        const double t = 87.0 * static_cast<double>(i) / (kCount - 1);
        EXPECT_NEAR(fast[i] / truth[i], 1, (2 * t + 5) * std::ldexp(1.0, -24)) << i;
      }
    }
  });
}

TEST(SoftmaxEverywhere, KernelsTakeWhatIsNotFiniteAndWhatIsHuge) {
  const std::vector<std::pair<std::vector<double>, float>> rows = {
      {{-kInfinity, 3, 3}, 1},     {{-kInfinity, -kInfinity}, 1},
      {{1, kInfinity}, 1},         {{-kInfinity, kInfinity}, 1},
      {{kNan, 1, 2}, 1},           {{1, 2, kNan}, 1},
      {{kNan, kInfinity}, 1},      {{1e30, 1e30, -1e30}, 1},
      {{3e38, -3e38, 3e38}, 1},    {{-3e38}, 100},
      {{-3e38, -3e38}, 3e38f},     {{3e38, -3e38, -kInfinity}, 1e-38f},
      {{1e-38, 2e-38, 0}, 1e38f},  {{0, -88, -100, -104, -150, -1e4}, 1},
      {{1, 2, -kInfinity}, 1e-44f}};
  test::on_each_place([&](const test::Place& place) {
    for (const auto& [row, scale] : rows) {
      for (const std::int64_t times : {1, 29, 8192}) {  // in whole vectors, parts, and long rows
        const auto count = static_cast<std::int64_t>(row.size());
        Case c(DType::kFloat32, 1, count * times, scale);
        for (std::int64_t i = 0; i < c.x.size(); ++i) {
          c.x.set(i, row[static_cast<std::size_t>(i % count)]);
        }
        SCOPED_TRACE(std::to_string(row[0]) + "... scale " + std::to_string(scale) + " times " +
                     std::to_string(times));
        place.run(softmax_forward, c.forward());
        const auto fast = c.y.values();
        reference::softmax_forward(c.forward());
        EXPECT_TRUE(test::close(fast, c.y.values(), 1e-6));
      }
    }
  });
}

TEST(SoftmaxEverywhere, NanStaysInItsRow) {
  test::on_each_place([](const test::Place& place) {
    for (const std::int64_t n : {19, 512, 4096}) {
      Case c(DType::kFloat32, 3, n, 1);
      c.x.set(n + 6, kNan), c.dy.set(3, kNan);
      place.run(softmax_forward, c.forward());
      for (std::int64_t i = 0; i < 3 * n; ++i) EXPECT_EQ(std::isnan(c.y.get(i)), i / n == 1) << i;
      place.run(softmax_backward, c.backward());
      for (std::int64_t i = 0; i < 3 * n; ++i) EXPECT_EQ(std::isnan(c.dx.get(i)), i / n != 2) << i;
    }
  });
}

TEST(SoftmaxEverywhere, OutputsMayReplaceInputs) {
  test::on_each_place([](const test::Place& place) {
    for (const DType dtype : place.dtypes()) {
      for (const std::int64_t n : {21, 1024, 17001}) {
        const Case expected(dtype, 3, n, 0.7f), c(dtype, 3, n, 0.7f), other(dtype, 3, n, 0.7f);
        place.run(softmax_forward, expected.forward());
        place.run(softmax_backward, expected.backward());
        place.run(softmax_forward, {c.x, c.scale, c.x});
        EXPECT_EQ(c.x.values(), expected.y.values());
        place.run(softmax_backward, {c.dy, c.x, c.scale, c.dy});
        EXPECT_EQ(c.dy.values(), expected.dx.values());
        place.run(softmax_backward, {other.dy, c.x, c.scale, c.x});
        EXPECT_EQ(c.x.values(), expected.dx.values());
      }
    }
  });
}

TEST(Softmax, SameBitsForAnyNumberOfThreads) {
  std::vector<Case> results;
  for (const int threads : {1, 2, 3}) {
    results.emplace_back(DType::kFloat32, 301, 97, 1.0f);
    const Case& c = results.back();
    test::with_threads(threads, [&] {
      Context context;
      softmax_forward(context, c.forward());
      softmax_backward(context, c.backward());
    });
    EXPECT_EQ(c.y.bytes(), results.front().y.bytes());
    EXPECT_EQ(c.dx.bytes(), results.front().dx.bytes());
  }
}

TEST(Softmax, SaysWhatHasKernels) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    const Case c(dtype, 2, 3, 1);
    EXPECT_TRUE(supports(c.forward()));
    EXPECT_TRUE(supports(c.backward()));
  }
  const Case half(DType::kFloat16, 2, 3, 1), c(DType::kFloat32, 2, 3, 1);
  EXPECT_EQ(supports(half.forward()).reason,
            "x: float16 has no CPU kernel, float32 and bfloat16 do");
  EXPECT_EQ(supports(half.backward()).reason,
            "dy: float16 has no CPU kernel, float32 and bfloat16 do");
  SoftmaxForward p = c.forward();
  p.x = ConstTensorView(c.x.view().data(), DType::kFloat32, {2, 3}, {DeviceType::kCuda, 0});
  EXPECT_FALSE(supports(p));
  EXPECT_EQ(supports(p).reason, backend_available(DeviceType::kCuda).reason);
}

std::string error_of(const SoftmaxForward& params, ErrorCode code = ErrorCode::kInvalidArgument) {
  Context context;
  return test::error_of([&] { softmax_forward(context, params); }, code);
}

std::string error_of(const SoftmaxBackward& params, ErrorCode code = ErrorCode::kInvalidArgument) {
  Context context;
  return test::error_of([&] { softmax_backward(context, params); }, code);
}

TEST(Softmax, WhatIsNotSupportedThrowsTheReasonAndTouchesNothing) {
  const Case c(DType::kFloat16, 2, 3, 1);
  EXPECT_EQ(error_of(c.forward(), ErrorCode::kUnsupported),
            "[softmax] x: float16 has no CPU kernel, float32 and bfloat16 do");
  EXPECT_EQ(error_of(c.backward(), ErrorCode::kUnsupported),
            "[softmax_backward] dy: float16 has no CPU kernel, float32 and bfloat16 do");
  EXPECT_EQ(c.y.values(), std::vector<double>(6, -7));
  EXPECT_EQ(c.dx.values(), std::vector<double>(6, -7));
}

TEST(Softmax, RefusesWhatItCannotTake) {
  const Case c(DType::kFloat32, 2, 3, 1), other(DType::kFloat32, 2, 4, 1);
  const Case half(DType::kFloat16, 2, 3, 1), gaps(DType::kFloat32, 2, 3, 1, {.order = {1, 0}});
  const Tensor integers(DType::kInt32, {2, 3}), cube(DType::kFloat32, {1, 2, 3});
  const TensorView far(c.y.view().mutable_data(), DType::kFloat32, {2, 3}, {DeviceType::kCuda, 0});
  const auto forward = [&](auto change) {
    SoftmaxForward p = c.forward();
    change(p);
    return error_of(p);
  };
  EXPECT_EQ(forward([&](auto& p) { p.x = {}; }),
            "[softmax] x: expected 2 dimensions, got no tensor");
  EXPECT_EQ(forward([&](auto& p) { p.x = cube; }),
            "[softmax] x: expected 2 dimensions, got (1, 2, 3)");
  EXPECT_EQ(forward([&](auto& p) { p.x = integers; }),
            "[softmax] x: expected float32 or float16 or bfloat16, got int32");
  EXPECT_EQ(forward([&](auto& p) { p.x = gaps.x; }),
            "[softmax] x: expected stride 1 along the last axis, got strides (1, 2)");
  EXPECT_EQ(forward([&](auto& p) { p.y = {}; }), "[softmax] y: expected (2, 3), got no tensor");
  EXPECT_EQ(forward([&](auto& p) { p.y = other.y; }), "[softmax] y: expected (2, 3), got (2, 4)");
  EXPECT_EQ(forward([&](auto& p) { p.y = half.y; }), "[softmax] y: expected float32, got float16");
  EXPECT_EQ(forward([&](auto& p) { p.y = far; }), "[softmax] y: expected device cpu:0, got cuda:0");
  for (const double scale : {0.0, -1.0, kInfinity, kNan}) {
    const auto message = forward([&](auto& p) { p.scale = static_cast<float>(scale); });
    EXPECT_EQ(message.rfind("[softmax] scale: expected a positive number, got ", 0), 0u) << message;
  }

  const auto backward = [&](auto change) {
    SoftmaxBackward p = c.backward();
    change(p);
    return error_of(p);
  };
  EXPECT_EQ(backward([&](auto& p) { p.dy = integers; }),
            "[softmax_backward] dy: expected float32 or float16 or bfloat16, got int32");
  EXPECT_EQ(backward([&](auto& p) { p.y = other.y; }),
            "[softmax_backward] y: expected (2, 3), got (2, 4)");
  EXPECT_EQ(backward([&](auto& p) { p.y = half.y; }),
            "[softmax_backward] y: expected float32, got float16");
  EXPECT_EQ(backward([&](auto& p) { p.dx = {}; }),
            "[softmax_backward] dx: expected (2, 3), got no tensor");
  EXPECT_EQ(backward([&](auto& p) { p.dx = gaps.dx; }),
            "[softmax_backward] dx: expected stride 1 along the last axis, got strides (1, 2)");
  EXPECT_EQ(backward([&](auto& p) { p.scale = 0; }),
            "[softmax_backward] scale: expected a positive number, got 0.000000");
}

}  // namespace
}  // namespace graft
