#include "graft/mlx/layer_norm.h"

#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "graft/layer_norm.h"
#include "graft/mlx/fusion.h"
#include "kernels_here.h"
#include "layer_norm/reference.h"
#include "messages.h"
#include "truth.h"

namespace graft::mlx {
namespace {

using testing::expect_rounded;
using testing::finite_differences;
using testing::largest;
using testing::max_error;
using testing::normal;
using testing::values;

using Arrays = std::vector<mx::array>;

constexpr float kEps = 1e-3f;

// The reference's y and gradients for what the arrays hold: x, weight and bias.
struct Truth {
  std::vector<double> y, dx, dweight, dbias;

  Truth(const Arrays& inputs, const mx::array& dy) {
    const auto floats = [](const mx::array& array) {
      const auto v = values(array);
      return std::vector<float>(v.begin(), v.end());
    };
    auto x = floats(inputs[0]), weight = floats(inputs[1]), bias = floats(inputs[2]);
    auto slope = floats(dy), out = x, gradient = x, of_weight = weight, of_bias = bias;
    const std::int64_t features = inputs[0].shape(-1);
    const auto rows = features == 0 ? 0 : static_cast<std::int64_t>(x.size()) / features;
    const auto matrix = [&](std::vector<float>& v) {
      return TensorView(v.data(), DType::kFloat32, {rows, features});
    };
    const auto vector = [&](std::vector<float>& v) {
      return TensorView(v.data(), DType::kFloat32, {features});
    };
    LayerNormForward forward;
    forward.x = matrix(x), forward.weight = vector(weight), forward.bias = vector(bias);
    forward.eps = kEps, forward.y = matrix(out);
    reference::layer_norm_forward(forward);
    LayerNormBackward backward;
    backward.dy = matrix(slope), backward.x = matrix(x), backward.weight = vector(weight);
    backward.eps = kEps, backward.dx = matrix(gradient);
    backward.dweight = vector(of_weight), backward.dbias = vector(of_bias);
    reference::layer_norm_backward(backward);
    y.assign(out.begin(), out.end()), dx.assign(gradient.begin(), gradient.end());
    dweight.assign(of_weight.begin(), of_weight.end());
    dbias.assign(of_bias.begin(), of_bias.end());
  }
};

TEST(LayerNorm, ValueAndGradientsOnHostileShapes) {
  const std::vector<mx::Shape> shapes = {{0, 5}, {3, 0},   {1, 1},     {7, 1},    {7},
                                         {1, 7}, {13, 31}, {3, 5, 17}, {2, 4096}, {211, 3}};
  for (const auto& shape : shapes) {
    for (const auto dtype : {mx::float32, mx::float16, mx::bfloat16}) {
      const mx::Shape features{shape.back()};
      const Arrays inputs{normal(shape, 1, 2.0f, dtype), normal(features, 2, 1.0f, dtype),
                          normal(features, 3, 1.0f, dtype)};
      const auto dy = normal(shape, 4, 1.0f, dtype);
      SCOPED_TRACE(::testing::Message() << dtype << " " << inputs[0].shape());
      const auto [y, gradients] =
          mx::vjp([](const Arrays& in) { return Arrays{layer_norm(in[0], in[1], in[2], kEps)}; },
                  inputs, {dy});
      const Truth truth(inputs, dy);
      EXPECT_EQ(y[0].shape(), shape);
      EXPECT_EQ(y[0].dtype(), dtype);
      for (std::size_t i = 0; i < 3; ++i) {
        EXPECT_EQ(gradients[i].shape(), inputs[i].shape());
        EXPECT_EQ(gradients[i].dtype(), dtype);
      }
      const int rows = shape.back() == 0 ? 0 : static_cast<int>(dy.size()) / shape.back();
      expect_rounded(y[0], truth.y, shape.back());
      if (shape.back() == 1 && testing::on_cuda()) {
        // All of dx cancels; what is left there is a rounding of rstd·dy·weight.
        const double cancels = testing::largest(values(dy)) * testing::largest(values(inputs[1]));
        EXPECT_LE(max_error(gradients[0], truth.dx),
                  std::ldexp(1.0, -23) * cancels / std::sqrt(kEps));
      } else {
        expect_rounded(gradients[0], truth.dx, shape.back());
      }
      expect_rounded(gradients[1], truth.dweight, shape.back() + rows);
      expect_rounded(gradients[2], truth.dbias, rows);
    }
  }
}

TEST(LayerNorm, WeightAndBiasAreOptional) {
  constexpr int kFeatures = 20;
  const auto x = normal({6, kFeatures}, 1), dy = normal({6, kFeatures}, 2);
  const auto weight = normal({kFeatures}, 3), bias = normal({kFeatures}, 4);
  for (const bool weighted : {false, true}) {
    for (const bool biased : {false, true}) {
      const auto [y, gradients] = mx::vjp(
          [&](const Arrays& in) {
            return Arrays{layer_norm(in[0], weighted ? std::optional(weight) : std::nullopt,
                                     biased ? std::optional(bias) : std::nullopt, kEps)};
          },
          {x}, {dy});
      const Truth truth(
          {x, weighted ? weight : mx::ones_like(weight), biased ? bias : mx::zeros_like(bias)}, dy);
      expect_rounded(y[0], truth.y, kFeatures);
      expect_rounded(gradients[0], truth.dx, kFeatures);
    }
  }
}

TEST(LayerNorm, KeepsTheDtypeOfXBesideAWiderWeight) {
  const Arrays inputs{normal({6, 20}, 1, 1.0f, mx::bfloat16), normal({20}, 2), normal({20}, 3)};
  const auto dy = normal({6, 20}, 4, 1.0f, mx::bfloat16);
  const auto [y, gradients] = mx::vjp(
      [](const Arrays& in) { return Arrays{layer_norm(in[0], in[1], in[2], kEps)}; }, inputs, {dy});
  const Truth truth(inputs, dy);
  EXPECT_EQ(y[0].dtype(), mx::bfloat16);
  EXPECT_EQ(gradients[0].dtype(), mx::bfloat16);
  EXPECT_EQ(gradients[1].dtype(), mx::float32);
  expect_rounded(y[0], truth.y, 20);
  expect_rounded(gradients[0], truth.dx, 20);
  expect_rounded(gradients[1], truth.dweight, 26);
  expect_rounded(gradients[2], truth.dbias, 6);
}

TEST(LayerNorm, GradientsAreTheSlopes) {
  const Arrays inputs{normal({3, 5}, 1), normal({5}, 2), normal({5}, 3)};
  const auto dy = normal({3, 5}, 4);
  const auto loss = [&](const Arrays& in) {
    return mx::sum(mx::multiply(layer_norm(in[0], in[1], in[2], kEps), dy));
  };
  const auto gradients = mx::grad(loss, std::vector<int>{0, 1, 2})(inputs);
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_LE(max_error(gradients[i], finite_differences(loss, inputs, i)), 1e-3);
    EXPECT_GE(largest(values(gradients[i])), 0.1);
  }
}

TEST(LayerNorm, Transforms) {
  const auto x = normal({4, 3, 7}, 1), tangent = normal({4, 3, 7}, 2);
  const auto weight = normal({7}, 3), bias = normal({7}, 4);
  const auto ours = [&](const Arrays& in) {
    return Arrays{mx::sin(layer_norm(in[0], in[1], bias, kEps))};
  };
  const auto plain = [&](const Arrays& in) {
    const auto apart = mx::subtract(in[0], mx::mean(in[0], -1, true));
    const auto variance = mx::mean(mx::square(apart), -1, true);
    const auto rstd = mx::rsqrt(mx::add(variance, mx::array(kEps)));
    return Arrays{mx::sin(mx::add(mx::multiply(mx::multiply(apart, rstd), in[1]), bias))};
  };
  const auto near = [](const mx::array& a, const mx::array& b) {
    EXPECT_EQ(a.shape(), b.shape());
    const auto t = values(b);
    EXPECT_LE(max_error(a, t), 1e-5 * (1 + largest(t)));
  };
  const auto slopes = [](auto op) {
    return [op](const Arrays& in) {
      return mx::grad([&](const Arrays& v) { return mx::sum(mx::square(op(v)[0])); },
                      std::vector<int>{0, 1})(in);
    };
  };
  const auto near_all = [&](const Arrays& a, const Arrays& b) {
    ASSERT_EQ(a.size(), b.size());
    for (std::size_t i = 0; i < a.size(); ++i) near(a[i], b[i]);
  };
  const auto weights = normal({4, 7}, 5);
  for (const auto& [inputs, axes] :
       {std::pair{Arrays{x, weight}, std::vector<int>{0, -1}},
        std::pair{Arrays{x, weight}, std::vector<int>{1, -1}},
        std::pair{Arrays{x, weights}, std::vector<int>{0, 0}},
        std::pair{Arrays{mx::take(x, 0, 0), weights}, std::vector<int>{-1, 0}}}) {
    near_all(mx::vmap(ours, axes)(inputs), mx::vmap(plain, axes)(inputs));
    near_all(mx::vmap(slopes(ours), axes)(inputs), mx::vmap(slopes(plain), axes)(inputs));
  }
  const Arrays inputs{x, weight}, tangents{tangent, bias};
  near_all(mx::jvp(ours, inputs, tangents).second, mx::jvp(plain, inputs, tangents).second);
  near_all(slopes(slopes(ours))(inputs), slopes(slopes(plain))(inputs));
  near_all(mx::compile(std::function<Arrays(const Arrays&)>(slopes(ours)))(inputs),
           slopes(plain)(inputs));
}

TEST(LayerNorm, IsCountedAndSaysWhyIfComposed) {
  testing::expect_counted_by_dtype("layer_norm", [](const mx::array& x) {
    return layer_norm(x, normal({5}, 2, 1.0f, x.dtype()), std::nullopt);
  });
}

std::string message_of(const mx::array& x, const std::optional<mx::array>& weight,
                       const std::optional<mx::array>& bias, float eps = 1e-5f) {
  return testing::message_of([&] { layer_norm(x, weight, bias, eps); });
}

TEST(LayerNorm, RejectsWhatDoesNotFit) {
  const auto x = normal({3, 4}, 1);
  EXPECT_EQ(message_of(mx::array(1.0f), std::nullopt, std::nullopt),
            "[layer_norm] x: expected at least one dimension, got a scalar");
  EXPECT_EQ(message_of(mx::array({1, 2}), std::nullopt, std::nullopt),
            "[layer_norm] x: expected a floating-point dtype, got int32");
  EXPECT_EQ(message_of(x, normal({5}, 1), std::nullopt),
            "[layer_norm] weight: expected (4), got (5)");
  EXPECT_EQ(message_of(x, std::nullopt, normal({1, 4}, 1)),
            "[layer_norm] bias: expected (4), got (1, 4)");
  EXPECT_EQ(message_of(x, mx::array({1, 2, 3, 4}), std::nullopt),
            "[layer_norm] weight: expected a floating-point dtype, got int32");
  EXPECT_EQ(message_of(x, std::nullopt, std::nullopt, -1),
            "[layer_norm] eps: expected a number of at least 0, got -1.000000");
}

}  // namespace
}  // namespace graft::mlx
