#include "graft/swiglu.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "graft/error.h"
#include "support/compare.h"
#include "support/errors.h"
#include "support/isas.h"
#include "support/places.h"
#include "support/tensor.h"
#include "swiglu/reference.h"

namespace graft {
namespace {

using test::Layout;
using test::Tensor;

// Rounds as a chain of plain operations in `dtype` would after each of them.
double rounded(double value, DType dtype) {
  Tensor one(dtype, {1});
  one.set(0, value);
  return one.get(0);
}

struct Case {
  Tensor dy, gate, up, y, dgate, dup;

  Case(DType dtype, std::int64_t m, std::int64_t n, const Layout& layout)
      : dy(dtype, {m, n}, layout),
        gate(dtype, {m, n}, layout),
        up(dtype, {m, n}, layout),
        y(dtype, {m, n}, layout),
        dgate(dtype, {m, n}, layout),
        dup(dtype, {m, n}, layout) {
    dy.fill_random(1);
    gate.fill_random(2, 3.0);
    up.fill_random(3);
    y.fill(-7), dgate.fill(-7), dup.fill(-7);
  }

  SwigluForward forward() const { return {gate, up, y}; }
  SwigluBackward backward() const { return {dy, gate, up, dgate, dup}; }
};

// The composed computation: every operation rounds its result to the dtype.
struct Plain {
  std::vector<double> y, dgate, dup;

  Plain(const Case& c, DType dtype) {
    const auto r = [dtype](double value) { return rounded(value, dtype); };
    for (std::int64_t i = 0; i < c.gate.size(); ++i) {
      const double g = c.gate.get(i), u = c.up.get(i), d = c.dy.get(i);
      const double s = r(1 / r(1 + r(std::exp(-g))));
      const double silu = r(g * s);
      y.push_back(r(silu * u));
      dgate.push_back(r(r(d * u) * r(s * r(1 + r(g * r(1 - s))))));
      dup.push_back(r(d * silu));
    }
  }
};

void check_case(const test::Place& place, DType dtype, std::int64_t m, std::int64_t n,
                const Layout& layout) {
  SCOPED_TRACE(std::string(name_of(dtype)) + " " + std::to_string(m) + "x" + std::to_string(n) +
               " offset " + std::to_string(layout.offset) + " gap " + std::to_string(layout.gap));
  const Case c(dtype, m, n, layout);
  place.run(swiglu_forward, c.forward());
  place.run(swiglu_backward, c.backward());

  Tensor y(DType::kFloat32, {m, n}), dgate(DType::kFloat32, {m, n}), dup(DType::kFloat32, {m, n});
  reference::swiglu_forward({c.gate, c.up, y});
  reference::swiglu_backward({c.dy, c.gate, c.up, dgate, dup});
  const Plain plain(c, dtype);
  EXPECT_TRUE(test::as_good_as(c.y.values(), plain.y, y.values(), dtype));
  EXPECT_TRUE(test::as_good_as(c.dgate.values(), plain.dgate, dgate.values(), dtype));
  EXPECT_TRUE(test::as_good_as(c.dup.values(), plain.dup, dup.values(), dtype));
  for (const Tensor* t : {&c.dy, &c.gate, &c.up, &c.y, &c.dgate, &c.dup}) {
    EXPECT_TRUE(t->guarded());
  }
}

TEST(SwigluEverywhere, MatchesTheReferenceOnHostileShapes) {
  const std::vector<std::tuple<int, int>> shapes = {{0, 5},    {5, 0},    {1, 1},    {1, 7},
                                                    {3, 15},   {2, 16},   {3, 17},   {13, 31},
                                                    {2, 8193}, {97, 101}, {33, 1024}};
  test::on_each_place([&](const test::Place& place) {
    for (const auto& [m, n] : shapes) {
      for (const DType dtype : place.dtypes()) {
        check_case(place, dtype, m, n, {});
        check_case(place, dtype, m, n, {.offset = 1, .gap = 3, .order = {}});
      }
    }
  });
}

TEST(Swiglu, GradientsAreTheSlopesOfTheReference) {
  Case c(DType::kFloat32, 3, 5, {});
  reference::swiglu_backward(c.backward());
  for (Tensor* input : {&c.gate, &c.up}) {
    const Tensor& gradient = input == &c.gate ? c.dgate : c.dup;
    for (std::int64_t i = 0; i < input->size(); ++i) {
      const double at = input->get(i);
      double loss[2];
      double points[2];
      for (const int side : {0, 1}) {
        input->set(i, at + (side == 0 ? -0.01 : 0.01));
        points[side] = input->get(i);
        reference::swiglu_forward(c.forward());
        loss[side] = c.dy.get(i) * c.y.get(i);
      }
      input->set(i, at);
      EXPECT_NEAR((loss[1] - loss[0]) / (points[1] - points[0]), gradient.get(i), 2e-3);
    }
  }
}

TEST(SwigluEverywhere, ExtremeGatesSaturateAndNanStaysNan) {
  test::on_each_place([](const test::Place& place) {
    Case c(DType::kFloat32, 1, 6, {});
    const double nan = std::numeric_limits<double>::quiet_NaN();
    const double gates[] = {-1e30, -200, -89, 89, 1e30, nan};
    for (int i = 0; i < 6; ++i) c.gate.set(i, gates[i]);
    c.up.fill(2), c.dy.fill(1);
    place.run(swiglu_forward, c.forward());
    place.run(swiglu_backward, c.backward());
    const double large = c.gate.get(4);
    // Below −88 the sigmoid may be flushed to zero: silu there is less than 1e-36 in size.
    EXPECT_TRUE(test::close(c.y.values(), {0, 0, 0, 178, 2 * large, nan}, 1e-35));
    EXPECT_TRUE(test::close(c.dgate.values(), {0, 0, 0, 2, 2, nan}, 1e-35));
    EXPECT_TRUE(test::close(c.dup.values(), {0, 0, 0, 89, large, nan}, 1e-35));
  });
}

TEST(Swiglu, SameBitsForAnyNumberOfThreads) {
  std::vector<Case> results;
  for (const int threads : {1, 2, 3}) {
    results.emplace_back(DType::kFloat32, 41, 1537, Layout{});
    const Case& c = results.back();
    test::with_threads(threads, [&] {
      Context context;
      swiglu_forward(context, c.forward());
      swiglu_backward(context, c.backward());
    });
    EXPECT_EQ(c.y.bytes(), results.front().y.bytes());
    EXPECT_EQ(c.dgate.bytes(), results.front().dgate.bytes());
    EXPECT_EQ(c.dup.bytes(), results.front().dup.bytes());
  }
}

TEST(SwigluEverywhere, AnyGradientMayBeAbsentAndOutputsMayReplaceInputs) {
  test::on_each_place([](const test::Place& place) {
    for (const std::int64_t n : {33, 64}) {
      const Case expected(DType::kFloat32, 4, n, {});
      place.run(swiglu_backward, expected.backward());
      for (const bool gate : {true, false}) {
        const Case c(DType::kFloat32, 4, n, {});
        SwigluBackward params = c.backward();
        (gate ? params.dup : params.dgate) = {};
        place.run(swiglu_backward, params);
        EXPECT_EQ((gate ? c.dgate : c.dup).values(),
                  (gate ? expected.dgate : expected.dup).values());
        EXPECT_EQ((gate ? c.dup : c.dgate).get(0), -7);
      }
      const Case c(DType::kFloat32, 4, n, {});
      place.run(swiglu_backward, {c.dy, c.gate, c.up, c.gate, c.up});
      EXPECT_EQ(c.gate.values(), expected.dgate.values());
      EXPECT_EQ(c.up.values(), expected.dup.values());
    }
  });
}

std::string error_of(const SwigluForward& params) {
  Context context;
  return test::error_of([&] { swiglu_forward(context, params); });
}

TEST(Swiglu, RefusesWhatItCannotTake) {
  const Case c(DType::kFloat32, 2, 3, {}), other(DType::kFloat32, 2, 4, {});
  const Case bf16(DType::kBFloat16, 2, 3, {});
  EXPECT_EQ(error_of({c.gate, other.up, c.y}), "[swiglu] up: expected (2, 3), got (2, 4)");
  EXPECT_EQ(error_of({c.gate, c.up, {}}), "[swiglu] y: expected (2, 3), got no tensor");
  EXPECT_EQ(error_of({c.gate, bf16.up, c.y}), "[swiglu] up: expected float32, got bfloat16");
  const ConstTensorView columns = ConstTensorView(c.gate.view().data(), DType::kFloat32, {3, 2});
  EXPECT_EQ(error_of({columns.transposed(), c.up, c.y}),
            "[swiglu] gate: expected stride 1 along the last axis, got strides (1, 2)");

  const TensorView half(c.y.view().mutable_data(), DType::kFloat16, {2, 3});
  EXPECT_FALSE(supports(SwigluForward{half, half, half}));
  EXPECT_EQ(error_of({half, half, half}),
            "[swiglu] " + supports(SwigluForward{half, half, half}).reason);
  const TensorView cuda(nullptr, DType::kFloat32, {0, 3}, Device{DeviceType::kCuda, 0});
  EXPECT_EQ(supports(SwigluForward{cuda, cuda, cuda}).reason,
            backend_available(DeviceType::kCuda).reason);
}

}  // namespace
}  // namespace graft
