#include "graft/rms_norm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "graft/error.h"
#include "rms_norm/reference.h"
#include "support/compare.h"
#include "support/errors.h"
#include "support/isas.h"
#include "support/places.h"
#include "support/slopes.h"
#include "support/tensor.h"

namespace graft {
namespace {

using test::Layout;
using test::Tensor;

struct Case {
  std::int64_t m, n;
  Tensor x, residual, weight, y, sum, rstd, dy, dsum, ds, dweight;

  Case(DType dtype, std::int64_t rows, std::int64_t features, const Layout& layout = {})
      : m(rows),
        n(features),
        x(dtype, {m, n}, layout),
        residual(x),
        weight(dtype, {n}),
        y(x),
        sum(x),
        rstd(DType::kFloat32, {m}),
        dy(x),
        dsum(x),
        ds(x),
        dweight(DType::kFloat32, {n}) {
    x.fill_random(1), residual.fill_random(2), weight.fill_random(3);
    dy.fill_random(4), dsum.fill_random(5);
    for (Tensor* output : {&y, &sum, &rstd, &ds, &dweight}) output->fill(-7);
  }

  RmsNormForward forward(bool with_residual) const {
    RmsNormForward p;
    p.x = x, p.weight = weight, p.eps = 1e-5f, p.y = y, p.rstd = rstd;
    if (with_residual) p.residual = residual, p.sum = sum;
    return p;
  }

  RmsNormBackward backward(bool with_residual) const {
    RmsNormBackward p;
    p.dy = dy, p.s = with_residual ? sum : x, p.weight = weight, p.eps = 1e-5f;
    p.ds = ds, p.dweight = dweight;
    if (with_residual) p.dsum = dsum, p.rstd = rstd;
    return p;
  }
};

// The composed computation: every operation rounds its result to the dtype; sums are in float32.
struct Plain {
  std::vector<double> y, rstd, ds, dweight;

  Plain(const Case& c, bool with_residual, DType dtype) : dweight(static_cast<std::size_t>(c.n)) {
    const auto r = [dtype](float value) { return test::rounded(value, dtype); };
    const auto at = [&](const Tensor& t, std::int64_t i) { return static_cast<float>(t.get(i)); };
    std::vector<float> weight_sums(static_cast<std::size_t>(c.n));
    for (std::int64_t row = 0; row < c.m; ++row) {
      const std::int64_t first = row * c.n;
      std::vector<float> s;
      float squares = 0, dot = 0;
      for (std::int64_t i = 0; i < c.n; ++i) {
        const float x = at(c.x, first + i);
        s.push_back(with_residual ? r(x + at(c.residual, first + i)) : x);
        squares += r(s.back() * s.back());
      }
      const float rs = r(1 / r(std::sqrt(r(r(squares / static_cast<float>(c.n)) + 1e-5f))));
      rstd.push_back(rs);
      for (std::int64_t i = 0; i < c.n; ++i) {
        const float value = s[static_cast<std::size_t>(i)];
        y.push_back(r(r(value * rs) * at(c.weight, i)));
        dot += r(r(at(c.dy, first + i) * at(c.weight, i)) * value);
        weight_sums[static_cast<std::size_t>(i)] += r(at(c.dy, first + i) * r(value * rs));
      }
      const float pull = r(r(dot / static_cast<float>(c.n)) * r(rs * r(rs * rs)));
      for (std::int64_t i = 0; i < c.n; ++i) {
        const float straight = r(r(at(c.dy, first + i) * at(c.weight, i)) * rs);
        float gradient = r(straight - r(s[static_cast<std::size_t>(i)] * pull));
        if (with_residual) gradient = r(gradient + at(c.dsum, first + i));
        ds.push_back(gradient);
      }
    }
    for (std::int64_t i = 0; i < c.n; ++i) {
      dweight[static_cast<std::size_t>(i)] = weight_sums[static_cast<std::size_t>(i)];
    }
  }
};

void check_case(const test::Place& place, DType dtype, std::int64_t m, std::int64_t n,
                const Layout& layout, bool with_residual) {
  SCOPED_TRACE(std::string(name_of(dtype)) + " " + std::to_string(m) + "x" + std::to_string(n) +
               (with_residual ? " with residual" : ""));
  const Case c(dtype, m, n, layout);
  Case truth(dtype, m, n, layout);
  truth.y = truth.y.as(DType::kFloat32), truth.ds = truth.ds.as(DType::kFloat32);
  reference::rms_norm_forward(truth.forward(with_residual));
  reference::rms_norm_backward(truth.backward(with_residual));
  const Plain plain(c, with_residual, dtype);
  place.run(rms_norm_forward, c.forward(with_residual));
  place.run(rms_norm_backward, c.backward(with_residual));
  // Three to five operations lie between an input and each output; rstd is always float32.
  EXPECT_TRUE(test::as_good_as(c.y.values(), plain.y, truth.y.values(), dtype, 3));
  EXPECT_TRUE(
      test::as_good_as(c.rstd.values(), plain.rstd, truth.rstd.values(), DType::kFloat32, 3));
  EXPECT_TRUE(test::as_good_as(c.ds.values(), plain.ds, truth.ds.values(), dtype, 5));
  EXPECT_TRUE(test::as_good_as(c.dweight.values(), plain.dweight, truth.dweight.values(),
                               DType::kFloat32, 3));
  EXPECT_EQ(c.sum.values(), truth.sum.values());
  for (const Tensor* t : {&c.x, &c.residual, &c.y, &c.sum, &c.rstd, &c.ds, &c.dweight}) {
    EXPECT_TRUE(t->guarded());
  }
}

TEST(RmsNormEverywhere, MatchesTheReferenceOnHostileShapes) {
  const std::vector<std::pair<int, int>> shapes = {{0, 5},    {1, 1},    {1, 7},    {3, 15},
                                                   {2, 16},   {3, 17},   {13, 576}, {17, 31},
                                                   {1, 8200}, {1100, 3}, {300, 512}};
  test::on_each_place([&](const test::Place& place) {
    for (const auto& [m, n] : shapes) {
      for (const DType dtype : place.dtypes()) {
        check_case(place, dtype, m, n, {}, false);
        check_case(place, dtype, m, n, {.offset = 1, .gap = 3, .order = {}}, true);
      }
    }
  });
}

TEST(RmsNorm, GradientsAreTheSlopesOfTheReference) {
  Case c(DType::kFloat32, 2, 5);
  reference::rms_norm_forward(c.forward(true));
  reference::rms_norm_backward(c.backward(true));
  const auto loss = [&c] {
    reference::rms_norm_forward(c.forward(true));
    return test::dot(c.y, c.dy) + test::dot(c.sum, c.dsum);
  };
  const auto check = [&](Tensor& input, const Tensor& gradient) {
    test::expect_slopes(loss, input, gradient, 0.005, 1e-3);
  };
  check(c.x, c.ds);
  check(c.residual, c.ds);
  check(c.weight, c.dweight);
}

TEST(RmsNormEverywhere, OutputsMayReplaceInputs) {
  test::on_each_place([](const test::Place& place) {
    for (const std::int64_t n : {21, 1024}) {
      Case expected(DType::kFloat32, 3, n), c(DType::kFloat32, 3, n);
      place.run(rms_norm_forward, expected.forward(true));
      place.run(rms_norm_backward, expected.backward(true));

      RmsNormForward forward = c.forward(true);
      forward.y = c.x, forward.sum = c.residual;
      place.run(rms_norm_forward, forward);
      EXPECT_EQ(c.x.values(), expected.y.values());
      EXPECT_EQ(c.residual.values(), expected.sum.values());
      RmsNormBackward backward = c.backward(true);
      backward.s = c.residual, backward.ds = c.dsum;
      place.run(rms_norm_backward, backward);
      EXPECT_EQ(c.dsum.values(), expected.ds.values());
      EXPECT_EQ(c.dweight.values(), expected.dweight.values());
    }
  });
}

TEST(RmsNorm, RstdIsComputedAgainIfAbsentAndGradientsAreOptional) {
  const Case c(DType::kFloat32, 3, 21);
  Context context;
  rms_norm_forward(context, c.forward(true));
  rms_norm_backward(context, c.backward(true));
  for (const bool wants_ds : {true, false}) {
    const Case other(DType::kFloat32, 3, 21);
    rms_norm_forward(context, other.forward(true));
    RmsNormBackward p = other.backward(true);
    p.rstd = {};
    (wants_ds ? p.dweight : p.ds) = {};
    rms_norm_backward(context, p);
    EXPECT_EQ(other.ds.values() == c.ds.values(), wants_ds);
    EXPECT_EQ(other.dweight.values() == c.dweight.values(), !wants_ds);
  }
}

TEST(RmsNormEverywhere, NanStaysInItsRow) {
  test::on_each_place([](const test::Place& place) {
    Case c(DType::kFloat32, 2, 19);
    c.x.set(3, std::numeric_limits<double>::quiet_NaN());
    place.run(rms_norm_forward, c.forward(false));
    EXPECT_TRUE(std::isnan(c.y.get(0)));
    EXPECT_FALSE(std::isnan(c.y.get(19)));
  });
}

// Each output is the same whatever else is asked for, but for what another order of sums makes of a
// mean square that is computed again.
TEST(RmsNormEverywhere, KernelsLeaveOutWhatIsAbsent) {
  test::on_each_place([](const test::Place& place) {
    for (const std::int64_t n : {21, 1024}) {
      const Case c(DType::kFloat32, 300, n);
      place.run(rms_norm_forward, c.forward(true));
      place.run(rms_norm_backward, c.backward(true));
      for (const bool wants_ds : {true, false}) {
        const Case other(DType::kFloat32, 300, n);
        RmsNormForward forward = other.forward(true);
        forward.rstd = {};
        place.run(rms_norm_forward, forward);
        EXPECT_EQ(other.y.values(), c.y.values());
        EXPECT_EQ(other.rstd.values(), std::vector<double>(300, -7));
        RmsNormBackward p = other.backward(true);
        p.rstd = {};
        (wants_ds ? p.dweight : p.ds) = {};
        place.run(rms_norm_backward, p);
        const auto& [written, expected] =
            wants_ds ? std::pair{&other.ds, &c.ds} : std::pair{&other.dweight, &c.dweight};
        EXPECT_TRUE(test::close(written->values(), expected->values(), 3e-5));
        const Tensor& absent = wants_ds ? other.dweight : other.ds;
        EXPECT_EQ(absent.values(), std::vector<double>(absent.values().size(), -7));
      }
    }
  });
}

TEST(RmsNormEverywhere, WeightsMayBeOfAnotherDtype) {
  test::on_each_place([](const test::Place& place) {
    for (const std::int64_t n : {37, 1024}) {
      for (const DType dtype : place.dtypes()) {
        for (const DType of_weight : place.dtypes()) {
          Case c(dtype, 6, n);
          c.weight = c.weight.as(of_weight);
          place.run(rms_norm_forward, c.forward(false));
          place.run(rms_norm_backward, c.backward(false));
          Case truth(c);
          truth.y = truth.y.as(DType::kFloat32), truth.ds = truth.ds.as(DType::kFloat32);
          reference::rms_norm_forward(truth.forward(false));
          reference::rms_norm_backward(truth.backward(false));
          const double bound = 16 * (test::epsilon(DType::kFloat32) + test::epsilon(dtype));
          EXPECT_TRUE(test::close(c.y.values(), truth.y.values(), bound));
          EXPECT_TRUE(test::close(c.ds.values(), truth.ds.values(), bound));
        }
      }
    }
  });
}

TEST(RmsNorm, SameBitsForAnyNumberOfThreads) {
  std::vector<Case> results;
  for (const int threads : {1, 2, 3}) {
    results.emplace_back(DType::kFloat32, 301, 97);
    const Case& c = results.back();
    test::with_threads(threads, [&] {
      Context context;
      rms_norm_forward(context, c.forward(true));
      rms_norm_backward(context, c.backward(true));
    });
    EXPECT_EQ(c.y.bytes(), results.front().y.bytes());
    EXPECT_EQ(c.ds.bytes(), results.front().ds.bytes());
    EXPECT_EQ(c.dweight.bytes(), results.front().dweight.bytes());
  }
}

std::string error_of(const RmsNormForward& params) {
  Context context;
  return test::error_of([&] { rms_norm_forward(context, params); });
}

TEST(RmsNorm, RefusesWhatItCannotTake) {
  const Case c(DType::kFloat32, 2, 3), other(DType::kFloat32, 2, 4);
  RmsNormForward p = c.forward(true);
  p.weight = other.weight;
  EXPECT_EQ(error_of(p), "[rms_norm] weight: expected (3), got (4)");
  p = c.forward(true);
  p.sum = {};
  EXPECT_EQ(error_of(p), "[rms_norm] sum: expected together with residual and only then");
  p = c.forward(false);
  p.eps = -1;
  EXPECT_EQ(error_of(p), "[rms_norm] eps: expected a number of at least 0, got -1.000000");
  p = c.forward(false);
  p.y = other.y;
  EXPECT_EQ(error_of(p), "[rms_norm] y: expected (2, 3), got (2, 4)");
}

}  // namespace
}  // namespace graft
