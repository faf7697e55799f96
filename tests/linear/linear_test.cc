#include "graft/linear.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "graft/error.h"
#include "linear/reference.h"
#include "support/compare.h"
#include "support/isas.h"
#include "support/places.h"
#include "support/plain.h"
#include "support/tensor.h"

namespace graft {
namespace {

using test::Layout;
using test::Plain;
using test::Tensor;

struct Case {
  DType dtype, weight_dtype;
  Tensor x, w, bias, dy, y, dx;

  Case(std::int64_t m, std::int64_t k, std::int64_t n, DType activations, DType weights,
       const Layout& in = {}, const Layout& out = {})
      : dtype(activations),
        weight_dtype(weights),
        x(activations, {m, k}, in),
        w(weights, {n, k}, in),
        bias(activations, {n}),
        dy(activations, {m, n}, in),
        y(activations, {m, n}, out),
        dx(activations, {m, k}, out) {
    x.fill_random(1), w.fill_random(2), bias.fill_random(3), dy.fill_random(4);
    y.fill(-7), dx.fill(-7);
  }
};

// Runs both directions through `weight` and holds them against the reference.
void check(const test::Place& place, const Case& c, const Weight& weight) {
  place.run(linear_forward, LinearForward{c.x, weight, c.bias, c.y});
  place.run(linear_backward, LinearBackward{c.dy, weight, c.dx});

  const std::int64_t m = c.y.view().dim(0), n = c.y.view().dim(1), k = c.dx.view().dim(1);
  Tensor y(DType::kFloat32, {m, n}), dx(DType::kFloat32, {m, k});
  reference::linear_forward({c.x, ConstTensorView(c.w), c.bias, y});
  reference::linear_backward({c.dy, ConstTensorView(c.w), dx});

  // The coarser of the two that decide.
  const DType type =
      test::epsilon(c.weight_dtype) > test::epsilon(c.dtype) ? c.weight_dtype : c.dtype;
  const Plain w = Plain::of(c.w, type);
  Plain plain_y = Plain::of(c.x, type).times(w.transposed(), type);
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = 0; j < n; ++j) plain_y.at(i, j) += c.bias.get(j);
  }
  const Plain plain_dx = Plain::of(c.dy, type).times(w, type);
  EXPECT_TRUE(test::as_good_as(c.y.values(), plain_y.values(), y.values(), type));
  EXPECT_TRUE(test::as_good_as(c.dx.values(), plain_dx.values(), dx.values(), type));
  for (const Tensor* t : {&c.x, &c.w, &c.dy, &c.y, &c.dx}) EXPECT_TRUE(t->guarded());
}

const std::vector<std::tuple<int, int, int>> kShapes = {
    {0, 5, 7},    {5, 0, 7},    {5, 7, 0},    {1, 1, 1},     {1, 37, 45},   {13, 17, 31},
    {14, 16, 32}, {15, 33, 33}, {57, 64, 65}, {61, 101, 97}, {150, 20, 70}, {301, 9, 40}};

// Packed where that is for the place's kernels.
Weight weight_of(const test::Place& place, const Case& c) {
  return place.is_cuda() ? Weight(ConstTensorView(c.w)) : Weight::packed(c.w, c.weight_dtype);
}

void check_shapes(DType activations, DType weights) {
  test::on_each_place([&](const test::Place& place) {
    for (const auto& [m, k, n] : kShapes) {
      SCOPED_TRACE(std::to_string(m) + "x" + std::to_string(k) + "x" + std::to_string(n));
      const Case dense(m, k, n, activations, weights);
      check(place, dense, weight_of(place, dense));
      check(place, dense, ConstTensorView(dense.w));
      const Case columns(m, k, n, activations, weights, {.offset = 1, .gap = 2, .order = {1, 0}},
                         {.offset = 3, .gap = 5, .order = {}});
      check(place, columns, weight_of(place, columns));
      const Case gaps(m, k, n, activations, weights, {.offset = 1, .gap = 3, .order = {}});
      check(place, gaps, weight_of(place, gaps));
    }
  });
}

TEST(LinearEverywhere, Float32) { check_shapes(DType::kFloat32, DType::kFloat32); }
TEST(LinearEverywhere, BFloat16) { check_shapes(DType::kBFloat16, DType::kBFloat16); }
TEST(LinearEverywhere, Float32ActivationsOverABFloat16Weight) {
  check_shapes(DType::kFloat32, DType::kBFloat16);
}
TEST(LinearEverywhere, BFloat16ActivationsOverAFloat32Weight) {
  check_shapes(DType::kBFloat16, DType::kFloat32);
}

TEST(LinearEverywhere, Float16AndItsMixtures) {
  if (!test::testing_on_cuda()) GTEST_SKIP() << "no CPU kernel takes float16";
  for (const DType other : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    check_shapes(DType::kFloat16, other);
    check_shapes(other, DType::kFloat16);
  }
}

// Summed over slices of K, forward or backward, where y is float32; odd ends in each.
TEST(LinearEverywhere, LongSums) {
  test::on_each_place([](const test::Place& place) {
    for (const DType weights : {DType::kFloat32, DType::kBFloat16}) {
      for (const DType activations : {DType::kFloat32, DType::kBFloat16}) {
        for (const auto& [k, n] : {std::pair{8311, 35}, {35, 8311}}) {
          SCOPED_TRACE(std::to_string(k) + " to " + std::to_string(n));
          const Case dense(17, k, n, activations, weights);
          check(place, dense, weight_of(place, dense));
          check(place, dense, ConstTensorView(dense.w));
          const Case columns(17, k, n, activations, weights,
                             {.offset = 1, .gap = 2, .order = {1, 0}},
                             {.offset = 3, .gap = 5, .order = {}});
          check(place, columns, weight_of(place, columns));
        }
      }
    }
  });
}

// A weight of more than 32 MiB goes by ranges of columns, and each column is summed as in a product
// of a few of them.
TEST(Linear, AWeightLargerThanACache) {
  constexpr std::int64_t kM = 200, kK = 2051, kN = 4200, kColumns = 960;
  Tensor x(DType::kFloat32, {kM, kK}), w(DType::kFloat32, {kN, kK});
  x.fill_random(1), w.fill_random(2);
  for (const int threads : {1, 3}) {
    test::with_threads(threads, [&] {
      const Tensor y(DType::kFloat32, {kM, kN});
      Context context;
      linear_forward(context, {x, Weight::packed(w), {}, y});
      EXPECT_TRUE(y.guarded());
      for (std::int64_t col = 0; col < kN; col += kColumns) {
        const std::int64_t columns = std::min(kColumns, kN - col);
        const ConstTensorView rows_of_w(w.view().data_as<float>() + col * kK, DType::kFloat32,
                                        {columns, kK});
        const Tensor part(DType::kFloat32, {kM, columns});
        linear_forward(context, {x, Weight::packed(rows_of_w), {}, part});
        for (std::int64_t i = 0; i < kM; ++i) {
          for (std::int64_t j = 0; j < columns; ++j) {
            ASSERT_EQ(y.get(i * kN + col + j), part.get(i * columns + j)) << i << ", " << col + j;
          }
        }
      }
    });
  }
}

TEST(Linear, SameBitsForAnyNumberOfThreads) {
  for (const int m : {3, 40, 300}) {
    std::vector<Case> results;
    for (const int threads : {1, 2, 5}) {
      results.emplace_back(m, 65, 131, DType::kFloat32, DType::kFloat32);
      const Case& c = results.back();
      test::with_threads(threads, [&] { check(test::Place(), c, Weight::packed(c.w)); });
      EXPECT_EQ(c.y.bytes(), results.front().y.bytes());
      EXPECT_EQ(c.dx.bytes(), results.front().dx.bytes());
    }
  }
}

TEST(LinearEverywhere, NanAndInfinityReachOnlyTheirRow) {
  test::on_each_place([](const test::Place& place) {
    for (const DType type : place.dtypes()) {
      const Case c(15, 33, 40, type, type);
      Case poisoned(15, 33, 40, type, type);
      poisoned.x.set(3 * 33 + 32, std::numeric_limits<double>::quiet_NaN());
      poisoned.x.set(7 * 33 + 5, std::numeric_limits<double>::infinity());
      const Weight weight = weight_of(place, c);
      place.run(linear_forward, LinearForward{c.x, weight, {}, c.y});
      place.run(linear_forward, LinearForward{poisoned.x, weight, {}, poisoned.y});
      for (int i = 0; i < 15; ++i) {
        for (int j = 0; j < 40; ++j) {
          const double value = poisoned.y.get(i * 40 + j);
          if (i == 3) {
            EXPECT_TRUE(std::isnan(value));
          } else if (i == 7) {
            EXPECT_TRUE(std::isinf(value));
          } else {
            EXPECT_EQ(value, c.y.get(i * 40 + j));
          }
        }
      }
    }
  });
}

std::string error_of(const LinearForward& params) {
  Context context;
  try {
    linear_forward(context, params);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Linear, RefusesWhatItCannotTake) {
  const Case c(2, 3, 4, DType::kFloat32, DType::kFloat32);
  const Weight weight = ConstTensorView(c.w);
  EXPECT_EQ(error_of({c.dy, weight, {}, c.y}), "[linear] x: expected (2, 3), got (2, 4)");
  EXPECT_EQ(error_of({c.x, weight, c.x, c.y}), "[linear] bias: expected (4), got (2, 3)");
  EXPECT_EQ(error_of({c.x, weight, {}, c.dx}), "[linear] y: expected (2, 4), got (2, 3)");
  EXPECT_EQ(error_of({c.x, {}, {}, c.y}),
            "[linear] weight: expected a packed or a plain weight, got none");
  const TensorView half(c.x.view().mutable_data(), DType::kFloat16, {2, 3});
  EXPECT_EQ(error_of({half, weight, {}, c.y}),
            "[linear] x: float16 has no CPU kernel, float32 and bfloat16 do");
  EXPECT_FALSE(supports(LinearForward{half, weight, {}, c.y}));

  const Weight forward_only = Weight::packed(c.w, DType::kFloat32, Packing::kForward);
  Context context;
  EXPECT_THROW(linear_backward(context, {c.dy, forward_only, c.dx}), Error);
  EXPECT_EQ(c.dx.get(0), -7);
  EXPECT_THROW(Weight::packed(c.bias), Error);
}

TEST(Linear, AWeightPackedForAnotherInstructionSetIsRefused) {
  if (cpu_isas().size() < 2) GTEST_SKIP() << "this machine has one instruction set only";
  const Case c(2, 3, 4, DType::kFloat32, DType::kFloat32);
  const std::string before = cpu_isa();
  const Weight packed = Weight::packed(c.w);
  set_cpu_isa("portable");
  const std::string message = error_of({c.x, packed, {}, c.y});
  set_cpu_isa(before);
  EXPECT_NE(message.find("pack it again"), std::string::npos) << message;
}

}  // namespace
}  // namespace graft
