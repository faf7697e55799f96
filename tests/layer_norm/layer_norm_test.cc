#include "graft/layer_norm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "checks.h"
#include "graft/error.h"
#include "layer_norm/reference.h"
#include "support/compare.h"
#include "support/tensor.h"

namespace graft {
namespace {

using test::Layout;
using test::Tensor;

using Values = std::vector<double>;

void set(Tensor& tensor, const Values& values) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    tensor.set(static_cast<std::int64_t>(i), values[i]);
  }
}

struct Case {
  Tensor x, weight, bias, y, mean, rstd, dy, dx, dweight, dbias;
  float eps = 1e-3f;

  Case(DType dtype, std::int64_t m, std::int64_t n, const Layout& layout = {})
      : x(dtype, {m, n}, layout),
        weight(dtype, {n}),
        bias(dtype, {n}),
        y(x),
        mean(DType::kFloat32, {m}),
        rstd(DType::kFloat32, {m}),
        dy(x),
        dx(x),
        dweight(DType::kFloat32, {n}),
        dbias(dweight) {
    x.fill_random(1), weight.fill_random(2), bias.fill_random(3), dy.fill_random(4);
    for (Tensor* output : {&y, &mean, &rstd, &dx, &dweight, &dbias}) output->fill(-7);
  }

  LayerNormForward forward() const { return {x, weight, bias, eps, y, mean, rstd}; }
  LayerNormBackward backward() const {
    return {dy, x, weight, eps, mean, rstd, dx, dweight, dbias};
  }
};

// Two rows with mean 2 and variance 1; with eps = 3, rstd is a half.
Case by_hand() {
  Case c(DType::kFloat32, 2, 2);
  c.eps = 3;
  set(c.x, {1, 3, 3, 1});
  set(c.weight, {2, 3});
  set(c.bias, {10, 20});
  set(c.dy, {1, 1, 2, 4});
  return c;
}

TEST(LayerNorm, GivesWhatIsWorkedOutByHand) {
  const Case c = by_hand();
  reference::layer_norm_forward(c.forward());
  EXPECT_EQ(c.y.values(), (Values{9, 21.5, 11, 18.5}));
  EXPECT_EQ(c.mean.values(), (Values{2, 2}));
  EXPECT_EQ(c.rstd.values(), (Values{0.5, 0.5}));

  LayerNormForward p = c.forward();
  p.bias = {};
  reference::layer_norm_forward(p);
  EXPECT_EQ(c.y.values(), (Values{-1, 1.5, 1, -1.5}));
  p.weight = {};
  reference::layer_norm_forward(p);
  EXPECT_EQ(c.y.values(), (Values{-0.5, 0.5, 0.5, -0.5}));
}

TEST(LayerNorm, GradientsAreWhatIsWorkedOutByHand) {
  const Case c = by_hand();
  reference::layer_norm_backward(c.backward());
  EXPECT_EQ(c.dx.values(), (Values{-0.1875, 0.1875, -1.5, 1.5}));
  EXPECT_EQ(c.dweight.values(), (Values{0.5, -1.5}));
  EXPECT_EQ(c.dbias.values(), (Values{3, 5}));

  LayerNormBackward p = c.backward();
  p.weight = {};
  reference::layer_norm_backward(p);
  EXPECT_EQ(c.dx.values(), (Values{0, 0, -0.375, 0.375}));
}

// With mean(x²) − mean² the reference would be off by a hundredth here.
TEST(LayerNorm, ALargeMeanCostsTheVarianceNoDigits) {
  Case c(DType::kFloat32, 1, 3);
  c.eps = 0;
  set(c.x, {16777216, 16777218, 16777220});
  reference::layer_norm_forward(c.forward());
  EXPECT_TRUE(test::close(c.rstd.values(), {std::sqrt(3.0 / 8)}, 1e-7));
}

TEST(LayerNorm, ARowOfEqualValuesIsTheBias) {
  Case c(DType::kFloat32, 1, 5);
  c.x.fill(0.7);
  reference::layer_norm_forward(c.forward());
  EXPECT_EQ(c.y.values(), c.bias.values());
}

TEST(LayerNorm, GradientsAreTheSlopesOfTheReference) {
  Case c(DType::kFloat32, 3, 5);
  LayerNormForward forward = c.forward();
  LayerNormBackward backward = c.backward();
  const auto loss = [&] {
    reference::layer_norm_forward(forward);
    double sum = 0;
    for (std::int64_t i = 0; i < c.y.size(); ++i) sum += c.dy.get(i) * c.y.get(i);
    return sum;
  };
  const auto check = [&](Tensor& input, const Tensor& gradient) {
    for (std::int64_t i = 0; i < input.size(); ++i) {
      const double at = input.get(i);
      double value[2], point[2];
      for (const int side : {0, 1}) {
        input.set(i, at + (side == 0 ? -0.005 : 0.005));
        point[side] = input.get(i);
        value[side] = loss();
      }
      input.set(i, at);
      EXPECT_NEAR((value[1] - value[0]) / (point[1] - point[0]), gradient.get(i), 1e-3);
    }
  };
  reference::layer_norm_backward(backward);
  check(c.x, c.dx);
  check(c.weight, c.dweight);
  check(c.bias, c.dbias);
  forward.weight = {}, forward.bias = {}, backward.weight = {};
  reference::layer_norm_backward(backward);
  check(c.x, c.dx);
}

TEST(LayerNorm, OutputsAreOptional) {
  const Case all(DType::kFloat32, 3, 5), none(DType::kFloat32, 3, 5);
  reference::layer_norm_forward(all.forward());
  reference::layer_norm_backward(all.backward());
  LayerNormForward forward = none.forward();
  forward.mean = {}, forward.rstd = {};
  reference::layer_norm_forward(forward);
  EXPECT_EQ(none.y.values(), all.y.values());
  EXPECT_EQ(none.mean.values(), Values(3, -7));
  EXPECT_EQ(none.rstd.values(), Values(3, -7));
  for (const int wanted : {0, 1, 2}) {
    const Case one(DType::kFloat32, 3, 5);
    LayerNormBackward p = one.backward();
    if (wanted != 0) p.dx = {};
    if (wanted != 1) p.dweight = {};
    if (wanted != 2) p.dbias = {};
    reference::layer_norm_backward(p);
    EXPECT_EQ(one.dx.values(), wanted == 0 ? all.dx.values() : Values(15, -7));
    EXPECT_EQ(one.dweight.values(), wanted == 1 ? all.dweight.values() : Values(5, -7));
    EXPECT_EQ(one.dbias.values(), wanted == 2 ? all.dbias.values() : Values(5, -7));
  }
}

// The same values whatever they are kept in and however they lie, rounded once at the end.
TEST(LayerNorm, ReferenceTakesEveryDtypeAndLayout) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    SCOPED_TRACE(name_of(dtype));
    const Case c(dtype, 7, 13, {.offset = 1, .gap = 3, .order = {}});
    Case wide(DType::kFloat32, 7, 13);
    for (auto [to, from] : {std::pair{&wide.x, &c.x}, std::pair{&wide.weight, &c.weight},
                            std::pair{&wide.bias, &c.bias}, std::pair{&wide.dy, &c.dy}}) {
      *to = from->as(DType::kFloat32);
    }
    for (const Case* one : {&c, &std::as_const(wide)}) {
      reference::layer_norm_forward(one->forward());
      reference::layer_norm_backward(one->backward());
    }
    EXPECT_EQ(c.y.values(), wide.y.as(dtype).values());
    EXPECT_EQ(c.dx.values(), wide.dx.as(dtype).values());
    EXPECT_EQ(c.dweight.values(), wide.dweight.values());
    EXPECT_EQ(c.dbias.values(), wide.dbias.values());
    EXPECT_TRUE(c.y.guarded());
    EXPECT_TRUE(c.dx.guarded());
  }
}

TEST(LayerNorm, NeitherCpuNorCudaHasKernelsYet) {
  const Case c(DType::kFloat32, 2, 3);
  EXPECT_FALSE(supports(c.forward()));
  EXPECT_FALSE(supports(c.backward()));
  EXPECT_EQ(supports(c.forward()).reason, "no CPU kernel for layer_norm yet");
  EXPECT_EQ(supports(c.backward()).reason, "no CPU kernel for layer_norm yet");
  LayerNormForward p = c.forward();
  p.x = ConstTensorView(c.x.view().data(), DType::kFloat32, {2, 3}, {DeviceType::kCuda, 0});
  EXPECT_FALSE(supports(p));
  EXPECT_EQ(supports(p).reason, backend_available(DeviceType::kCuda).reason);
}

void run(const LayerNormForward& params) {
  Context context;
  layer_norm_forward(context, params);
}

void run(const LayerNormBackward& params) {
  Context context;
  layer_norm_backward(context, params);
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

TEST(LayerNorm, WhatIsNotSupportedThrowsTheReasonAndTouchesNothing) {
  const Case c(DType::kFloat16, 2, 3);
  EXPECT_EQ(error_of(c.forward(), ErrorCode::kUnsupported),
            "[layer_norm] no CPU kernel for layer_norm yet");
  EXPECT_EQ(error_of(c.backward(), ErrorCode::kUnsupported),
            "[layer_norm_backward] no CPU kernel for layer_norm yet");
  for (const Tensor* output : {&c.y, &c.mean, &c.rstd, &c.dx, &c.dweight, &c.dbias}) {
    EXPECT_EQ(output->values(), Values(output->values().size(), -7));
  }
}

// What is optional may be left out without an error of another kind.
TEST(LayerNorm, OptionalTensorsMayBeAbsent) {
  const Case c(DType::kFloat32, 2, 3);
  LayerNormForward forward;
  forward.x = c.x, forward.y = c.y;
  EXPECT_EQ(error_of(forward, ErrorCode::kUnsupported),
            "[layer_norm] no CPU kernel for layer_norm yet");
  LayerNormBackward backward;
  backward.dy = c.dy, backward.x = c.x;
  EXPECT_EQ(error_of(backward, ErrorCode::kUnsupported),
            "[layer_norm_backward] no CPU kernel for layer_norm yet");
}

TEST(LayerNorm, ForwardRefusesWhatItCannotTake) {
  const Case c(DType::kFloat32, 2, 3), other(DType::kFloat32, 5, 4), half(DType::kFloat16, 2, 3);
  const Case gaps(DType::kFloat32, 2, 3, {.order = {1, 0}});
  const Tensor integers(DType::kInt32, {2, 3}), counts(DType::kInt32, {3});
  const TensorView far(c.y.view().mutable_data(), DType::kFloat32, {3}, {DeviceType::kCuda, 0});
  const auto message = [&](auto change) {
    LayerNormForward p = c.forward();
    change(p);
    return error_of(p, ErrorCode::kInvalidArgument);
  };
  EXPECT_EQ(message([&](auto& p) { p.x = c.weight; }),
            "[layer_norm] x: expected 2 dimensions, got (3)");
  EXPECT_EQ(message([&](auto& p) { p.x = integers; }),
            "[layer_norm] x: expected float32 or float16 or bfloat16, got int32");
  EXPECT_EQ(message([&](auto& p) { p.x = gaps.x; }),
            "[layer_norm] x: expected stride 1 along the last axis, got strides (1, 2)");
  EXPECT_EQ(message([&](auto& p) { p.weight = other.weight; }),
            "[layer_norm] weight: expected (3), got (4)");
  EXPECT_EQ(message([&](auto& p) { p.weight = counts; }),
            "[layer_norm] weight: expected float32 or float16 or bfloat16, got int32");
  EXPECT_EQ(message([&](auto& p) { p.bias = other.bias; }),
            "[layer_norm] bias: expected (3), got (4)");
  EXPECT_EQ(message([&](auto& p) { p.bias = far; }),
            "[layer_norm] bias: expected device cpu:0, got cuda:0");
  EXPECT_EQ(message([&](auto& p) { p.eps = -1; }),
            "[layer_norm] eps: expected a number of at least 0, got -1.000000");
  EXPECT_EQ(message([&](auto& p) { p.y = {}; }), "[layer_norm] y: expected (2, 3), got no tensor");
  EXPECT_EQ(message([&](auto& p) { p.y = half.y; }),
            "[layer_norm] y: expected float32, got float16");
  EXPECT_EQ(message([&](auto& p) { p.mean = other.mean; }),
            "[layer_norm] mean: expected (2), got (5)");
  EXPECT_EQ(message([&](auto& p) { p.rstd = other.rstd; }),
            "[layer_norm] rstd: expected (2), got (5)");
}

TEST(LayerNorm, BackwardRefusesWhatItCannotTake) {
  const Case c(DType::kFloat32, 2, 3), other(DType::kFloat32, 5, 4), half(DType::kFloat16, 2, 3);
  const Tensor integers(DType::kInt32, {2, 3});
  const auto message = [&](auto change) {
    LayerNormBackward p = c.backward();
    change(p);
    return error_of(p, ErrorCode::kInvalidArgument);
  };
  EXPECT_EQ(message([&](auto& p) { p.dy = integers; }),
            "[layer_norm_backward] dy: expected float32 or float16 or bfloat16, got int32");
  EXPECT_EQ(message([&](auto& p) { p.x = half.x; }),
            "[layer_norm_backward] x: expected float32, got float16");
  EXPECT_EQ(message([&](auto& p) { p.weight = other.weight; }),
            "[layer_norm_backward] weight: expected (3), got (4)");
  EXPECT_EQ(message([&](auto& p) { p.eps = std::nanf(""); }),
            "[layer_norm_backward] eps: expected a number of at least 0, got nan");
  EXPECT_EQ(message([&](auto& p) { p.mean = {}; }),
            "[layer_norm_backward] rstd: expected together with mean and only then");
  EXPECT_EQ(message([&](auto& p) { p.mean = other.mean; }),
            "[layer_norm_backward] mean: expected (2), got (5)");
  EXPECT_EQ(message([&](auto& p) { p.rstd = other.rstd; }),
            "[layer_norm_backward] rstd: expected (2), got (5)");
  EXPECT_EQ(message([&](auto& p) { p.dx = other.dx; }),
            "[layer_norm_backward] dx: expected (2, 3), got (5, 4)");
  EXPECT_EQ(message([&](auto& p) { p.dweight = half.weight; }),
            "[layer_norm_backward] dweight: expected float32, got float16");
  EXPECT_EQ(message([&](auto& p) { p.dbias = other.dbias; }),
            "[layer_norm_backward] dbias: expected (3), got (4)");
}

}  // namespace
}  // namespace graft
