#include "graft/softmax.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "checks.h"
#include "graft/error.h"
#include "softmax/reference.h"
#include "support/compare.h"
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
    double sum = 0;
    for (std::int64_t i = 0; i < c.y.size(); ++i) sum += c.dy.get(i) * c.y.get(i);
    return sum;
  };
  for (std::int64_t i = 0; i < c.x.size(); ++i) {
    const double at = c.x.get(i);
    double value[2], point[2];
    for (const int side : {0, 1}) {
      c.x.set(i, at + (side == 0 ? -0.005 : 0.005));
      point[side] = c.x.get(i);
      value[side] = loss();
    }
    c.x.set(i, at);
    EXPECT_NEAR((value[1] - value[0]) / (point[1] - point[0]), c.dx.get(i), 1e-4);
  }
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

TEST(Softmax, NeitherCpuNorCudaHasKernelsYet) {
  const Case c(DType::kFloat32, 2, 3, 1);
  EXPECT_FALSE(supports(c.forward()));
  EXPECT_FALSE(supports(c.backward()));
  EXPECT_EQ(supports(c.forward()).reason, "no CPU kernel for softmax yet");
  EXPECT_EQ(supports(c.backward()).reason, "no CPU kernel for softmax yet");
  SoftmaxForward p = c.forward();
  p.x = ConstTensorView(c.x.view().data(), DType::kFloat32, {2, 3}, {DeviceType::kCuda, 0});
  EXPECT_FALSE(supports(p));
  EXPECT_EQ(supports(p).reason, backend_available(DeviceType::kCuda).reason);
}

void run(const SoftmaxForward& params) {
  Context context;
  softmax_forward(context, params);
}

void run(const SoftmaxBackward& params) {
  Context context;
  softmax_backward(context, params);
}

// The message of the error of this kind; otherwise a failure.
template <class Params>
std::string error_of(const Params& params, ErrorCode code) {
  try {
    run(params);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    return error.what();
  }
  return "no error";
}

TEST(Softmax, WhatIsNotSupportedThrowsTheReasonAndTouchesNothing) {
  const Case c(DType::kFloat16, 2, 3, 1);
  EXPECT_EQ(error_of(c.forward(), ErrorCode::kUnsupported),
            "[softmax] no CPU kernel for softmax yet");
  EXPECT_EQ(error_of(c.backward(), ErrorCode::kUnsupported),
            "[softmax_backward] no CPU kernel for softmax yet");
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
    return error_of(p, ErrorCode::kInvalidArgument);
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
    return error_of(p, ErrorCode::kInvalidArgument);
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
