#include "graft/layer_norm.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "checks.h"
#include "graft/error.h"
#include "layer_norm/reference.h"
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

using Values = std::vector<double>;

void set(Tensor& tensor, const Values& values) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    tensor.set(static_cast<std::int64_t>(i), values[i]);
  }
}

double largest(const Values& values) {
  double most = 0;
  for (const double value : values) most = std::max(most, std::abs(value));
  return most;
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
    return test::dot(c.y, c.dy);
  };
  const auto check = [&](Tensor& input, const Tensor& gradient) {
    test::expect_slopes(loss, input, gradient, 0.005, 1e-3);
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

// The composed computation: every operation rounds its result to the dtype; sums are in float32.
struct Plain {
  Values y, mean, rstd, dx, dweight, dbias;

  Plain(const Case& c, std::int64_t m, std::int64_t n, DType dtype) {
    const auto r = [dtype](float value) { return test::rounded(value, dtype); };
    const auto at = [](const Tensor& t, std::int64_t i) { return static_cast<float>(t.get(i)); };
    const float count = static_cast<float>(n);
    std::vector<float> weight_sums(static_cast<std::size_t>(n)), bias_sums(weight_sums);
    for (std::int64_t first = 0; first < m * n; first += n) {
      float sum = 0, squares = 0, sum_g = 0, dot = 0;
      for (std::int64_t i = 0; i < n; ++i) sum += at(c.x, first + i);
      const float of_row = r(sum / count);
      std::vector<float> apart;
      for (std::int64_t i = 0; i < n; ++i) {
        apart.push_back(r(at(c.x, first + i) - of_row));
        squares += r(apart.back() * apart.back());
      }
      const float rs = r(1 / r(std::sqrt(r(r(squares / count) + c.eps))));
      mean.push_back(of_row), rstd.push_back(rs);
      std::vector<float> g, normal;
      for (std::int64_t i = 0; i < n; ++i) {
        const auto place = static_cast<std::size_t>(i);
        const float dy = at(c.dy, first + i);
        normal.push_back(r(apart[place] * rs));
        y.push_back(r(r(normal.back() * at(c.weight, i)) + at(c.bias, i)));
        g.push_back(r(dy * at(c.weight, i)));
        sum_g += g.back(), dot += r(g.back() * normal.back());
        weight_sums[place] += r(dy * normal.back()), bias_sums[place] += dy;
      }
      for (std::size_t i = 0; i < g.size(); ++i) {
        const float straight = r(g[i] - r(sum_g / count));
        dx.push_back(r(r(straight - r(normal[i] * r(dot / count))) * rs));
      }
    }
    dweight.assign(weight_sums.begin(), weight_sums.end());
    dbias.assign(bias_sums.begin(), bias_sums.end());
  }
};

void check_case(const test::Place& place, DType dtype, std::int64_t m, std::int64_t n,
                const Layout& layout, bool saved, double spread = 1) {
  SCOPED_TRACE(std::string(name_of(dtype)) + " " + std::to_string(m) + "x" + std::to_string(n) +
               (saved ? " mean and rstd saved" : ""));
  Case c(dtype, m, n, layout);
  c.x.fill_random(1, spread);
  Case truth = c;
  truth.y = truth.y.as(DType::kFloat32), truth.dx = truth.dx.as(DType::kFloat32);
  reference::layer_norm_forward(truth.forward());
  reference::layer_norm_backward(truth.backward());
  const Plain plain(c, m, n, dtype);
  place.run(layer_norm_forward, c.forward());
  LayerNormBackward backward = c.backward();
  if (!saved) backward.mean = {}, backward.rstd = {};
  place.run(layer_norm_backward, backward);
  // `term`: the largest of what may cancel in an output, of which a float32 loses a rounding.
  const auto good = [&](const Tensor& t, const Values& of_plain, const Tensor& of_truth, DType d,
                        double term = 0) {
    const Values right = of_truth.values();
    const double bound = 2 * test::max_error(of_plain, right) + test::epsilon(d) * largest(right) +
                         test::epsilon(DType::kFloat32) * term;
    return test::close(t.values(), right, bound);
  };
  const double x = largest(c.x.values()), rstd = largest(truth.rstd.values());
  const double g = largest(c.dy.values()) * largest(c.weight.values());
  EXPECT_TRUE(good(c.y, plain.y, truth.y, dtype));
  EXPECT_TRUE(good(c.mean, plain.mean, truth.mean, DType::kFloat32, x));
  // Few values may all be lucky in `plain`: of one there are three roundings after the sum.
  EXPECT_TRUE(
      test::as_good_as(c.rstd.values(), plain.rstd, truth.rstd.values(), DType::kFloat32, 3));
  EXPECT_TRUE(good(c.dx, plain.dx, truth.dx, dtype, g * rstd));
  EXPECT_TRUE(good(c.dweight, plain.dweight, truth.dweight, DType::kFloat32));
  EXPECT_TRUE(good(c.dbias, plain.dbias, truth.dbias, DType::kFloat32));
  for (const Tensor* t : {&c.x, &c.y, &c.mean, &c.rstd, &c.dy, &c.dx, &c.dweight, &c.dbias}) {
    EXPECT_TRUE(t->guarded());
  }
}

TEST(LayerNormEverywhere, MatchesTheReferenceOnHostileShapes) {
  const std::vector<std::pair<int, int>> shapes = {
      {0, 5},    {1, 1},   {7, 1},    {1, 7},    {3, 15},   {2, 16},   {4, 17},    {5, 31},
      {13, 576}, {17, 97}, {1, 8200}, {1100, 3}, {211, 31}, {67, 129}, {2, 20011}, {300, 512}};
  test::on_each_place([&](const test::Place& place) {
    for (const auto& [m, n] : shapes) {
      for (const DType dtype : place.dtypes()) {
        // Large values cost nothing but their own rounding; float16 has no room for more.
        const double spread = dtype == DType::kFloat16 ? 1e3 : 1e15;
        check_case(place, dtype, m, n, {}, false);
        check_case(place, dtype, m, n, {.offset = 1, .gap = 3, .order = {}}, true, spread);
      }
    }
  });
}

TEST(LayerNormEverywhere, RowsMayHaveNoElements) {
  test::on_each_place([](const test::Place& place) {
    const Case c(DType::kFloat32, 3, 0);
    place.run(layer_norm_forward, c.forward());
    place.run(layer_norm_backward, c.backward());
    EXPECT_TRUE(test::close(c.mean.values(), Values(3, std::nan("")), 0));
    EXPECT_TRUE(test::close(c.rstd.values(), Values(3, std::nan("")), 0));
  });
}

TEST(LayerNorm, LargeOutputsAreTheSame) {
  test::expect_same_large_outputs(
      [](auto... of) { return Case(of...); },
      [](Context& context, const Case& c) {
        LayerNormBackward backward = c.backward();
        backward.mean = {}, backward.rstd = {};
        layer_norm_forward(context, c.forward());
        layer_norm_backward(context, backward);
      },
      [](Context& context, const Case& c, const auto& part) {
        LayerNormForward forward = c.forward();
        forward.x = part(c.x), forward.y = part(c.y), forward.mean = {}, forward.rstd = {};
        layer_norm_forward(context, forward);
        LayerNormBackward backward = c.backward();
        backward.x = part(c.x), backward.dy = part(c.dy), backward.dx = part(c.dx);
        backward.mean = {}, backward.rstd = {}, backward.dweight = {}, backward.dbias = {};
        layer_norm_backward(context, backward);
      });
}

// The kernels' mean and variance, where a sum in float32 or mean(x²) − mean² would have no digits.
TEST(LayerNormEverywhere, KernelsKeepTheVarianceBesideALargeMean) {
  test::on_each_place([](const test::Place& place) {
    for (const std::int64_t n : {3, 1000, 1024, 5003}) {
      Case c(DType::kFloat32, 2, n);
      c.eps = 0;
      for (std::int64_t i = 0; i < 2 * n; ++i)
        c.x.set(i, 16777216.0 + 2.0 * static_cast<double>(i % 3));
      place.run(layer_norm_forward, c.forward());
      const Values y = c.y.values(), rstd = c.rstd.values();
      reference::layer_norm_forward(c.forward());
      EXPECT_TRUE(test::close(y, c.y.values(), 2e-6));
      EXPECT_TRUE(test::close(rstd, c.rstd.values(), 1e-6));
    }
  });
}

TEST(LayerNormEverywhere, KernelsGiveTheBiasForARowOfEqualValues) {
  test::on_each_place([](const test::Place& place) {
    Case c(DType::kFloat32, 1, 1021);
    c.x.fill(0.7);
    place.run(layer_norm_forward, c.forward());
    // What is left of the mean's rounding, times rstd at most 1/√eps.
    EXPECT_TRUE(test::close(c.y.values(), c.bias.values(), 1e-6));
  });
}

TEST(LayerNormEverywhere, NanAndInfinityStayInTheirRow) {
  test::on_each_place([](const test::Place& place) {
    for (const auto& [value, n] : {std::pair{std::nan(""), 19},
                                   {static_cast<double>(INFINITY), 19},
                                   {std::nan(""), 512},
                                   {static_cast<double>(INFINITY), 4096}}) {
      Case c(DType::kFloat32, 6, n);
      c.x.set(n + 6, value);
      place.run(layer_norm_forward, c.forward());
      for (std::int64_t i = 0; i < c.y.size(); ++i) {
        EXPECT_EQ(std::isnan(c.y.get(i)), i / n == 1) << i;
      }
      place.run(layer_norm_backward, c.backward());
      for (std::int64_t i = 0; i < c.dx.size(); ++i) {
        EXPECT_EQ(std::isnan(c.dx.get(i)), i / n == 1) << i;
      }
      for (const double sum : c.dbias.values()) EXPECT_TRUE(std::isfinite(sum));
    }
  });
}

TEST(LayerNormEverywhere, OutputsMayReplaceInputs) {
  test::on_each_place([](const test::Place& place) {
    for (const DType dtype : place.dtypes()) {
      for (const std::int64_t n : {37, 1024}) {
        const Case expected(dtype, 7, n), c(dtype, 7, n), other(dtype, 7, n);
        place.run(layer_norm_forward, expected.forward());
        place.run(layer_norm_backward, expected.backward());
        LayerNormForward forward = c.forward();
        LayerNormBackward backward = expected.backward();
        forward.y = c.x;
        place.run(layer_norm_forward, forward);
        EXPECT_EQ(c.x.values(), expected.y.values());
        backward.dy = c.dy, backward.dx = c.dy;
        place.run(layer_norm_backward, backward);
        EXPECT_EQ(c.dy.values(), expected.dx.values());
        backward.dy = other.dy, backward.x = other.x, backward.dx = other.x;
        place.run(layer_norm_backward, backward);
        EXPECT_EQ(other.x.values(), expected.dx.values());
      }
    }
  });
}

// Each output of backward is the same whatever else is asked for.
TEST(LayerNormEverywhere, KernelsLeaveOutWhatIsAbsent) {
  test::on_each_place([](const test::Place& place) {
    for (const std::int64_t n : {37, 1024}) {
      const Case all(DType::kFloat32, 21, n);
      place.run(layer_norm_forward, all.forward());
      place.run(layer_norm_backward, all.backward());
      for (int wanted = 0; wanted < 8; ++wanted) {
        SCOPED_TRACE(wanted);
        const Case c(DType::kFloat32, 21, n);
        LayerNormBackward p = c.backward();
        p.mean = {}, p.rstd = {};
        if ((wanted & 1) == 0) p.dx = {};
        if ((wanted & 2) == 0) p.dweight = {};
        if ((wanted & 4) == 0) p.dbias = {};
        place.run(layer_norm_backward, p);
        const std::pair<const Tensor*, const Tensor*> outputs[] = {
            {&c.dx, &all.dx}, {&c.dweight, &all.dweight}, {&c.dbias, &all.dbias}};
        for (int i = 0; i < 3; ++i) {
          const auto& [output, expected] = outputs[i];
          if ((wanted >> i & 1) == 0) {
            EXPECT_EQ(output->values(), Values(output->values().size(), -7));
          } else {
            EXPECT_TRUE(test::close(output->values(), expected->values(), 1e-5));
          }
        }
      }
    }
  });
}

TEST(LayerNormEverywhere, WeightAndBiasAreOptionalAndOfAnyDtype) {
  test::on_each_place([](const test::Place& place) {
    for (const DType dtype : place.dtypes()) {
      for (const bool weighted : {false, true}) {
        for (const bool biased : {false, true}) {
          for (const std::int64_t n : {37, 1024}) {
            Case c(DType::kFloat32, 6, n);
            c.weight = c.weight.as(dtype), c.bias = c.bias.as(dtype);
            LayerNormForward forward = c.forward();
            LayerNormBackward backward = c.backward();
            if (!weighted) forward.weight = {}, backward.weight = {};
            if (!biased) forward.bias = {};
            forward.mean = {}, forward.rstd = {}, backward.mean = {}, backward.rstd = {};
            place.run(layer_norm_forward, forward);
            place.run(layer_norm_backward, backward);
            const Values y = c.y.values(), dx = c.dx.values();
            reference::layer_norm_forward(forward);
            reference::layer_norm_backward(backward);
            EXPECT_TRUE(test::close(y, c.y.values(), 2e-6));
            EXPECT_TRUE(test::close(dx, c.dx.values(), 2e-6));
          }
        }
      }
    }
  });
}

TEST(LayerNorm, SameBitsForAnyNumberOfThreads) {
  std::vector<Case> results;
  for (const int threads : {1, 2, 3}) {
    results.emplace_back(DType::kFloat32, 1301, 97);
    const Case& c = results.back();
    test::with_threads(threads, [&] {
      Context context;
      layer_norm_forward(context, c.forward());
      layer_norm_backward(context, c.backward());
    });
    const Case& first = results.front();
    for (const auto& [one, other] : {std::pair{&c.y, &first.y},
                                     {&c.mean, &first.mean},
                                     {&c.rstd, &first.rstd},
                                     {&c.dx, &first.dx},
                                     {&c.dweight, &first.dweight},
                                     {&c.dbias, &first.dbias}}) {
      EXPECT_EQ(one->bytes(), other->bytes());
    }
  }
}

TEST(LayerNorm, SaysWhatHasKernels) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    const Case c(dtype, 2, 3);
    EXPECT_TRUE(supports(c.forward()));
    EXPECT_TRUE(supports(c.backward()));
  }
  const Case c(DType::kFloat32, 2, 3), half(DType::kFloat16, 2, 3);
  EXPECT_EQ(supports(half.forward()).reason,
            "x: float16 has no CPU kernel, float32 and bfloat16 do");
  EXPECT_EQ(supports(half.backward()).reason,
            "dy: float16 has no CPU kernel, float32 and bfloat16 do");
  LayerNormForward p = c.forward();
  p.bias = half.bias;
  EXPECT_EQ(supports(p).reason, "bias: float16 has no CPU kernel, float32 and bfloat16 do");
  p = c.forward();
  p.x = ConstTensorView(c.x.view().data(), DType::kFloat32, {2, 3}, {DeviceType::kCuda, 0});
  EXPECT_FALSE(supports(p));
  EXPECT_EQ(supports(p).reason, backend_available(DeviceType::kCuda).reason);
}

std::string error_of(const LayerNormForward& params, ErrorCode code = ErrorCode::kInvalidArgument) {
  Context context;
  return test::error_of([&] { layer_norm_forward(context, params); }, code);
}

std::string error_of(const LayerNormBackward& params,
                     ErrorCode code = ErrorCode::kInvalidArgument) {
  Context context;
  return test::error_of([&] { layer_norm_backward(context, params); }, code);
}

TEST(LayerNorm, WhatIsNotSupportedThrowsTheReasonAndTouchesNothing) {
  const Case c(DType::kFloat16, 2, 3);
  EXPECT_EQ(error_of(c.forward(), ErrorCode::kUnsupported),
            "[layer_norm] x: float16 has no CPU kernel, float32 and bfloat16 do");
  EXPECT_EQ(error_of(c.backward(), ErrorCode::kUnsupported),
            "[layer_norm_backward] dy: float16 has no CPU kernel, float32 and bfloat16 do");
  for (const Tensor* output : {&c.y, &c.mean, &c.rstd, &c.dx, &c.dweight, &c.dbias}) {
    EXPECT_EQ(output->values(), Values(output->values().size(), -7));
  }
}

TEST(LayerNorm, ForwardRefusesWhatItCannotTake) {
  const Case c(DType::kFloat32, 2, 3), other(DType::kFloat32, 5, 4), half(DType::kFloat16, 2, 3);
  const Case gaps(DType::kFloat32, 2, 3, {.order = {1, 0}});
  const Tensor integers(DType::kInt32, {2, 3}), counts(DType::kInt32, {3});
  const TensorView far(c.y.view().mutable_data(), DType::kFloat32, {3}, {DeviceType::kCuda, 0});
  const auto message = [&](auto change) {
    LayerNormForward p = c.forward();
    change(p);
    return error_of(p);
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
    return error_of(p);
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
