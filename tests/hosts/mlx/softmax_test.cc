#include "graft/mlx/softmax.h"

#include <functional>
#include <limits>
#include <stdexcept>
#include <string>

#include "graft/mlx/fusion.h"
#include "graft/softmax.h"
#include "kernels_here.h"
#include "messages.h"
#include "softmax/reference.h"
#include "truth.h"

namespace graft::mlx {
namespace {

using testing::expect_rounded;
using testing::finite_differences;
using testing::largest;
using testing::max_error;
using testing::message_of;
using testing::normal;
using testing::values;

using Arrays = std::vector<mx::array>;

// The reference's y and dx for what the arrays hold.
struct Truth {
  std::vector<double> y, dx;

  Truth(const mx::array& x, const mx::array& dy, float scale) {
    const auto floats = [](const std::vector<double>& v) {
      return std::vector<float>(v.begin(), v.end());
    };
    auto in = floats(values(x)), slope = floats(values(dy)), out = in, gradient = in;
    const std::int64_t features = x.shape(-1);
    const auto rows = features == 0 ? 0 : static_cast<std::int64_t>(x.size()) / features;
    const auto view = [&](std::vector<float>& v) {
      return TensorView(v.data(), DType::kFloat32, {rows, features});
    };
    reference::softmax_forward({view(in), scale, view(out)});
    reference::softmax_backward({view(slope), view(out), scale, view(gradient)});
    y.assign(out.begin(), out.end()), dx.assign(gradient.begin(), gradient.end());
  }
};

TEST(Softmax, ValueAndGradientOnHostileShapes) {
  const std::vector<mx::Shape> shapes = {{0, 5}, {3, 0},   {1, 1},     {7, 1},    {7},
                                         {1, 7}, {13, 31}, {3, 5, 17}, {2, 4096}, {211, 3}};
  for (const auto& shape : shapes) {
    for (const auto dtype : {mx::float32, mx::float16, mx::bfloat16}) {
      for (const float scale : {1.0f, 0.35f}) {
        const auto x = normal(shape, 1, 2.0f, dtype), dy = normal(shape, 2, 1.0f, dtype);
        SCOPED_TRACE(::testing::Message() << dtype << " " << x.shape() << " scale " << scale);
        const auto [y, dx] =
            mx::vjp([&](const Arrays& in) { return Arrays{softmax(in[0], scale)}; }, {x}, {dy});
        const Truth truth(x, dy, scale);
        EXPECT_EQ(y[0].shape(), shape);
        EXPECT_EQ(dx[0].shape(), shape);
        EXPECT_EQ(y[0].dtype(), dtype);
        EXPECT_EQ(dx[0].dtype(), dtype);
        expect_rounded(y[0], truth.y, shape.back());
        // Composed and unscaled, MLX has a gradient that rounds at every step.
        const bool fused = testing::reason_for("x", dtype).empty();
        expect_rounded(dx[0], truth.dx, shape.back(), !fused && scale == 1.0f ? 5 : 2);
      }
    }
  }
}

TEST(Softmax, GradientIsTheSlope) {
  const auto x = normal({3, 5}, 1), dy = normal({3, 5}, 2);
  const auto loss = [&](const Arrays& in) {
    return mx::sum(mx::multiply(softmax(in[0], 1.7f), dy));
  };
  const auto dx = mx::grad(loss)({x})[0];
  EXPECT_LE(max_error(dx, finite_differences(loss, {x}, 0)), 1e-3);
  EXPECT_GE(largest(values(dx)), 0.1);
}

// scale · x is not rounded to float16, where it would be infinite.
TEST(Softmax, IsScaledInFloat32) {
  const auto x = mx::array({60000.0f, 59968.0f}, {1, 2}, mx::float16);
  EXPECT_EQ(values(softmax(x, 4.0f)), (std::vector<double>{1, 0}));
  EXPECT_LE(max_error(softmax(x, 0.01f), std::vector<double>{0.579324, 0.420676}), 3e-4);
}

TEST(Softmax, InfinityMasksAndAWhollyMaskedRowIsNan) {
  const float none = -std::numeric_limits<float>::infinity();
  for (const auto dtype : {mx::float32, mx::float16, mx::bfloat16}) {
    for (const float scale : {1.0f, 0.5f}) {
      const auto x = mx::array({none, 2.0f, 2.0f, none, none, none}, {2, 3}, dtype);
      const auto y = values(softmax(x, scale)), of_mlx = values(mx::softmax(x, -1));
      EXPECT_EQ(std::vector<double>(y.begin(), y.begin() + 3), (std::vector<double>{0, 0.5, 0.5}));
      for (std::size_t i = 3; i < 6; ++i) {
        EXPECT_TRUE(std::isnan(y[i]));
        EXPECT_TRUE(std::isnan(of_mlx[i]));
      }
    }
  }
}

TEST(Softmax, Transforms) {
  constexpr float kScale = 0.6f;
  const auto x = normal({4, 3, 7}, 1), tangent = normal({4, 3, 7}, 2);
  const auto ours = [](const Arrays& in) { return Arrays{mx::sin(softmax(in[0], kScale))}; };
  const auto plain = [](const Arrays& in) {
    const auto powers = mx::exp(mx::multiply(in[0], mx::array(kScale)));
    return Arrays{mx::sin(mx::divide(powers, mx::sum(powers, -1, true)))};
  };
  const auto near = [](const mx::array& a, const mx::array& b) {
    EXPECT_EQ(a.shape(), b.shape());
    EXPECT_LE(max_error(a, values(b)), 1e-6);
  };
  const auto slope = [](auto op) {
    return [op](const Arrays& in) {
      return Arrays{
          mx::grad([&](const Arrays& v) { return mx::sum(mx::square(op(v)[0])); })(in)[0]};
    };
  };
  const auto curve = [&](auto op) {
    return slope([first = slope(op)](const Arrays& in) { return first(in); });
  };
  for (const int axis : {0, 1}) {
    near(mx::vmap(ours, {axis}, {0})({x})[0], mx::vmap(plain, {axis}, {0})({x})[0]);
    near(mx::vmap(slope(ours), {axis}, {0})({x})[0], mx::vmap(slope(plain), {axis}, {0})({x})[0]);
  }
  near(mx::jvp(ours, {x}, {tangent}).second[0], mx::jvp(plain, {x}, {tangent}).second[0]);
  near(curve(ours)({x})[0], curve(plain)({x})[0]);
  near(mx::compile(std::function<Arrays(const Arrays&)>(slope(ours)))({x})[0],
       slope(plain)({x})[0]);
}

TEST(Softmax, IsCountedAndSaysWhyIfComposed) {
  testing::expect_counted_by_dtype("softmax", [](const mx::array& x) { return softmax(x, 0.5f); });
}

TEST(Softmax, RejectsWhatDoesNotFit) {
  EXPECT_EQ(message_of([] { graft::mlx::softmax(mx::array(1.0f)); }),
            "[softmax] x: expected at least one dimension, got a scalar");
  EXPECT_EQ(message_of([] {
              graft::mlx::softmax(mx::array({1, 2}));
            }),
            "[softmax] x: expected a floating-point dtype, got int32");
  for (const float scale : {0.0f, -1.0f, std::nanf("")}) {
    const auto message = message_of([&] { softmax(normal({3, 4}, 1), scale); });
    EXPECT_EQ(message.rfind("[softmax] scale: expected a positive number, got ", 0), 0u) << message;
  }
}

}  // namespace
}  // namespace graft::mlx
