// The shaders of src/softmax/metal.metal: the text that Metal would compile, executed on the
// stand-in.
#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <cmath>
#include <limits>
#include <string>

#include "graft/error.h"
#include "graft/metal.h"
#include "graft/mlx/fusion.h"
#include "graft/mlx/softmax.h"
#include "graft/softmax.h"
#include "hosts/mlx/truth.h"
#include "metal/evaluate.h"
#include "metal/rows_test.h"
#include "softmax/reference.h"

namespace graft::standin {
namespace {

using mlx::testing::expect_rounded;
using mlx::testing::normal;
using mlx::testing::values;

// The reference's y and dx for what the arrays hold.
struct Truth {
  std::vector<double> y, dx;

  Truth(const mx::array& x, const mx::array& dy, float scale) {
    auto in = floats(x), slope = floats(dy), out = in, gradient = in;
    reference::softmax_forward({rows_view(in, x), scale, rows_view(out, x)});
    reference::softmax_backward(
        {rows_view(slope, x), rows_view(out, x), scale, rows_view(gradient, x)});
    y.assign(out.begin(), out.end()), dx.assign(gradient.begin(), gradient.end());
  }
};

// x, dy -> y, dx.
auto value_and_gradient(float scale) {
  return [scale](const Arrays& arrays) {
    const auto y = [&](const Arrays& in) { return Arrays{mlx::softmax(in[0], scale)}; };
    const auto [value, gradient] = mx::vjp(y, {arrays[0]}, {arrays[1]});
    return Arrays{value[0], gradient[0]};
  };
}

TEST(SoftmaxMetal, ValueAndGradientOnHostileShapes) {
  for (const mx::Shape& shape : row_shapes()) {
    for (const mx::Dtype dtype : dtypes_for(shape)) {
      SCOPED_TRACE(::testing::Message() << dtype << " " << shape);
      const float scale = shape.back() % 2 == 0 ? 0.35f : 1.0f;
      const auto x = normal(shape, 1, 2.0f, dtype), dy = normal(shape, 2, 1.0f, dtype);
      const Truth truth(x, dy, scale);
      for (const std::uint32_t seed : {1u, 2u}) {
        mlx::reset_fusion_report();
        const Evaluated run = evaluate_on_metal(value_and_gradient(scale), {x, dy}, seed);
        EXPECT_EQ(run.fault, "");
        EXPECT_EQ(run.launched.size(), 2u);
        for (const mx::array& output : run.outputs) {
          EXPECT_EQ(output.shape(), shape);
          EXPECT_EQ(output.dtype(), dtype);
        }
        expect_rounded(run.outputs[0], truth.y, shape.back());
        expect_rounded(run.outputs[1], truth.dx, shape.back());
        expect_fused("softmax");
      }
    }
  }
}

TEST(SoftmaxMetal, NothingToDo) {
  for (const mx::Shape& shape : {mx::Shape{0, 5}, mx::Shape{3, 0}, mx::Shape{0}}) {
    const Evaluated run =
        evaluate_on_metal(value_and_gradient(1.0f), {mx::zeros(shape), mx::zeros(shape)});
    EXPECT_EQ(run.fault, "");
    EXPECT_TRUE(run.launched.empty());
    for (const mx::array& output : run.outputs) EXPECT_EQ(output.shape(), shape);
  }
}

// What graft/softmax.h says of them, whoever makes the row: a simdgroup, a threadgroup, one that
// reads twice.
TEST(SoftmaxMetal, InfinitiesAndNans) {
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  const auto softmax = [](const Arrays& in) { return Arrays{mlx::softmax(in[0], 0.5f)}; };
  for (const int features : {5, 1000, 8200}) {
    const auto count = static_cast<std::size_t>(features);
    std::vector<float> x(5 * count, kNone);
    x[0] = x[count - 1] = 2.0f;                                 // two that are not masked
    std::fill_n(x.begin() + 2 * features, 2 * features, 1.0f);  // row 1 is masked
    x[2 * count + 3] = std::nanf("");
    x[3 * count + 4] = -kNone;
    x[4 * count + 2] = std::numeric_limits<float>::max();
    const Evaluated run = evaluate_on_metal(softmax, {mx::array(x.begin(), {5, features})});
    EXPECT_EQ(run.fault, "");
    const auto y = values(run.outputs[0]);
    for (std::size_t n = 0; n < count; ++n) {
      EXPECT_EQ(y[n], n == 0 || n == count - 1 ? 0.5 : 0.0);
      for (const std::size_t row : {1, 2, 3}) EXPECT_TRUE(std::isnan(y[row * count + n])) << row;
      EXPECT_EQ(y[4 * count + n], n == 2 ? 1.0 : 0.0);
    }
  }
}

// Neither scale · x nor a product of many may overflow.
TEST(SoftmaxMetal, IsScaledInFloat32) {
  const auto x = mx::array({60000.0f, 59968.0f}, {1, 2}, mx::float16);
  const auto run = evaluate_on_metal(
      [](const Arrays& in) {
        return Arrays{mlx::softmax(in[0], 4.0f), mlx::softmax(in[0], 0.01f)};
      },
      {x});
  EXPECT_EQ(values(run.outputs[0]), (std::vector<double>{1, 0}));
  EXPECT_LE(mlx::testing::max_error(run.outputs[1], std::vector<double>{0.579324, 0.420676}), 3e-4);
}

TEST(SoftmaxMetal, SmallAndStridedOperands) {
  for (const int count : {1, 7, 8}) {
    for (const mx::Shape& shape : {mx::Shape{count}, mx::Shape{1, count}, mx::Shape{count, 1}}) {
      const auto x = normal(shape, 1), dy = normal(shape, 2);
      const Evaluated run = evaluate_on_metal(value_and_gradient(0.5f), {x, dy});
      EXPECT_EQ(run.fault, "");
      const Truth truth(x, dy, 0.5f);
      expect_rounded(run.outputs[0], truth.y, count);
      expect_rounded(run.outputs[1], truth.dx, count);
    }
  }
  const auto x = mx::transpose(normal({33, 3, 2}, 1)), dy = mx::transpose(normal({33, 3, 2}, 2));
  const Evaluated run = evaluate_on_metal(value_and_gradient(0.5f), {x, dy}, 2);
  EXPECT_EQ(run.fault, "");
  const Truth truth(x, dy, 0.5f);
  expect_rounded(run.outputs[0], truth.y, 33);
  expect_rounded(run.outputs[1], truth.dx, 33);
}

TEST(SoftmaxMetal, Transforms) {
  const auto op = [](const Arrays& in) { return mlx::softmax(in[0], 0.6f); };
  expect_transforms_hold(op, {normal({4, 3, 7}, 1)}, {0}, {normal({4, 3, 7}, 2)});
  expect_folded(op, {normal({4, 3, 7}, 1)}, {1});
}

TEST(SoftmaxMetal, SaysWhyNot) {
  const auto reason = [](const TensorView& x) {
    const SoftmaxForward forward{x, 1.0f, x};
    const SoftmaxBackward backward{x, x, 1.0f, x};
    EXPECT_EQ(supports(forward).reason, supports(backward).reason);
    return supports(forward).reason;
  };
  EXPECT_EQ(reason(on_metal(DType::kFloat16, {3, 4})), "");
  EXPECT_EQ(reason(on_metal(DType::kInt32, {3, 4})), "no Metal kernel takes dtype int32");
  EXPECT_EQ(reason(on_metal(DType::kFloat32, {std::int64_t{1} << 30, 4})),
            "Metal kernels take sizes below 2^31");
  EXPECT_THROW(metal::plan(SoftmaxForward{on_metal(DType::kFloat32, {3, 4}), 1.0f,
                                          on_metal(DType::kFloat32, {3, 5})}),
               Error);
  mlx::set_fused_enabled(false);
  mlx::reset_fusion_report();
  const auto run =
      evaluate_on_metal(value_and_gradient(1.0f), {normal({3, 4}, 1), normal({3, 4}, 2)});
  mlx::set_fused_enabled(true);
  EXPECT_TRUE(run.launched.empty());
  for (const auto& record : mlx::fusion_report()) EXPECT_EQ(record.reason, "fusion is turned off");
}

TEST(SoftmaxMetal, LaunchesStayWithinLimits) {
  for_shapes([](std::int64_t rows, std::int64_t features) {
    const TensorView x = on_metal(DType::kBFloat16, {rows, features});
    if (!supports(SoftmaxForward{x, 1.0f, x})) return;
    for (const auto& plan :
         {metal::plan(SoftmaxForward{x, 1.0f, x}), metal::plan(SoftmaxBackward{x, x, 1.0f, x})}) {
      ASSERT_EQ(plan.steps.size(), 1u);
      expect_within_limits(plan);
      expect_rows_covered(plan.steps[0], rows);
    }
  });
}

}  // namespace
}  // namespace graft::standin
