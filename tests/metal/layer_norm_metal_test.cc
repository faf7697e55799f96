// The shaders of src/layer_norm/metal.metal: the text that Metal would compile, executed on the
// stand-in.
#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <optional>
#include <string>

#include "graft/layer_norm.h"
#include "graft/metal.h"
#include "graft/mlx/fusion.h"
#include "graft/mlx/layer_norm.h"
#include "hosts/mlx/truth.h"
#include "layer_norm/reference.h"
#include "metal/evaluate.h"
#include "metal/rows_test.h"

namespace graft::standin {
namespace {

using mlx::testing::expect_rounded;
using mlx::testing::normal;
using mlx::testing::values;

constexpr float kEps = 1e-3f;

// The reference's y and gradients of x, weight, bias and dy; and the first term of dx.
struct Truth {
  std::vector<double> y, dx, dweight, dbias, terms;

  explicit Truth(const Arrays& arrays) {
    const mx::array& like = arrays[0];
    auto x = floats(arrays[0]), weight = floats(arrays[1]), bias = floats(arrays[2]),
         slope = floats(arrays[3]), out = x, gradient = x, of_weight = weight, of_bias = bias,
         mean = floats(mx::zeros({rows_of(like)})), rstd = mean;
    LayerNormForward forward;
    forward.x = rows_view(x, like), forward.weight = vector_view(weight);
    forward.bias = vector_view(bias), forward.eps = kEps, forward.y = rows_view(out, like);
    forward.mean = vector_view(mean), forward.rstd = vector_view(rstd);
    reference::layer_norm_forward(forward);
    LayerNormBackward backward;
    backward.dy = rows_view(slope, like), backward.x = rows_view(x, like);
    backward.weight = vector_view(weight), backward.eps = kEps;
    backward.dx = rows_view(gradient, like);
    backward.dweight = vector_view(of_weight), backward.dbias = vector_view(of_bias);
    reference::layer_norm_backward(backward);
    y.assign(out.begin(), out.end()), dx.assign(gradient.begin(), gradient.end());
    dweight.assign(of_weight.begin(), of_weight.end());
    dbias.assign(of_bias.begin(), of_bias.end());
    for (std::size_t i = 0; i < x.size(); ++i) {
      const std::size_t row = i / weight.size(), n = i % weight.size();
      terms.push_back(double{slope[i]} * double{weight[n]} * double{rstd[row]});
    }
  }
};

// x, weight, bias, dy -> y, dx, dweight, dbias.
Arrays value_and_gradients(const Arrays& arrays) {
  const auto y = [](const Arrays& in) {
    return Arrays{mlx::layer_norm(in[0], in[1], in[2], kEps)};
  };
  auto [value, gradients] = mx::vjp(y, {arrays[0], arrays[1], arrays[2]}, {arrays[3]});
  gradients.insert(gradients.begin(), value[0]);
  return gradients;
}

void expect_right(const Arrays& inputs, std::uint32_t seed) {
  const Evaluated run = evaluate_on_metal(value_and_gradients, inputs, seed);
  EXPECT_EQ(run.fault, "");
  const Truth truth(inputs);
  const int features = inputs[1].shape(0), rows = rows_of(inputs[0]);
  // y; dx; sums of blocks, and their sums, which without rows are all there is.
  EXPECT_EQ(run.launched.size(), features == 0 ? 0u : rows == 0 ? 2u : 5u);
  for (std::size_t i = 0; i < 4; ++i) {
    const mx::array& like = inputs[i == 0 ? 0 : i - 1];
    EXPECT_EQ(run.outputs[i].shape(), like.shape());
    EXPECT_EQ(run.outputs[i].dtype(), like.dtype());
  }
  expect_rounded(run.outputs[0], truth.y, features);
  expect_difference(run.outputs[1], truth.dx, truth.terms, features);
  expect_rounded(run.outputs[2], truth.dweight, features + rows);
  expect_rounded(run.outputs[3], truth.dbias, rows);
}

Arrays operands(const mx::Shape& shape, mx::Dtype dtype, mx::Dtype of_vectors) {
  const mx::Shape features{shape.back()};
  return {normal(shape, 1, 2.0f, dtype), normal(features, 2, 1.0f, of_vectors),
          normal(features, 3, 1.0f, of_vectors), normal(shape, 4, 1.0f, dtype)};
}

TEST(LayerNormMetal, ValueAndGradientsOnHostileShapes) {
  for (const mx::Shape& shape : row_shapes()) {
    for (const mx::Dtype dtype : dtypes_for(shape)) {
      for (const std::uint32_t seed : {1u, 2u}) {
        SCOPED_TRACE(::testing::Message() << dtype << " " << shape);
        mlx::reset_fusion_report();
        expect_right(operands(shape, dtype, dtype), seed);
        expect_fused("layer_norm");
      }
    }
  }
}

// Rows enough for large blocks, of which the last is not full.
TEST(LayerNormMetal, ManyRows) { expect_right(operands({2050, 5}, mx::float32, mx::float32), 2); }

TEST(LayerNormMetal, SmallStridedAndEmptyOperands) {
  for (const mx::Shape& shape : {mx::Shape{1}, mx::Shape{7}, mx::Shape{8}, mx::Shape{7, 1},
                                 mx::Shape{8, 1}, mx::Shape{0, 5}, mx::Shape{3, 0}}) {
    SCOPED_TRACE(::testing::Message() << shape);
    expect_right(operands(shape, mx::float32, mx::float32), 0);
  }
  expect_right({mx::transpose(normal({33, 3, 2}, 1)), mx::slice(normal({66}, 2), {0}, {66}, {2}),
                normal({33}, 3), mx::transpose(normal({33, 3, 2}, 4))},
               2);
}

TEST(LayerNormMetal, VectorsOfAnotherDtype) {
  expect_right(operands({9, 33}, mx::bfloat16, mx::float32), 1);
}

// The variance is not a difference of large numbers.
TEST(LayerNormMetal, RowsFarFromZero) {
  for (const mx::Shape& shape : {mx::Shape{9, 33}, mx::Shape{3, 513}}) {
    Arrays inputs = operands(shape, mx::float32, mx::float32);
    inputs[0] = mx::add(inputs[0], mx::array(4096.0f));
    const Evaluated run = evaluate_on_metal(value_and_gradients, inputs);
    EXPECT_EQ(run.fault, "");
    EXPECT_LE(mlx::testing::max_error(run.outputs[0], Truth(inputs).y), 2e-3);
  }
}

TEST(LayerNormMetal, WeightAndBiasAreOptional) {
  const auto x = normal({9, 33}, 1), weight = normal({33}, 2), bias = normal({33}, 3),
             dy = normal({9, 33}, 4);
  for (const bool weighted : {false, true}) {
    for (const bool biased : {false, true}) {
      SCOPED_TRACE(::testing::Message() << weighted << biased);
      mlx::reset_fusion_report();
      const Evaluated run = evaluate_on_metal(
          [&](const Arrays& in) {
            const auto y = [&](const Arrays& v) {
              return Arrays{mlx::layer_norm(v[0], weighted ? std::optional(in[1]) : std::nullopt,
                                            biased ? std::optional(in[2]) : std::nullopt, kEps)};
            };
            const auto [value, gradients] = mx::vjp(y, {in[0]}, {in[3]});
            return Arrays{value[0], gradients[0]};
          },
          {x, weight, bias, dy});
      EXPECT_EQ(run.fault, "");
      EXPECT_EQ(run.launched.size(), 2u);
      const Truth truth(
          {x, weighted ? weight : mx::ones({33}), biased ? bias : mx::zeros({33}), dy});
      expect_rounded(run.outputs[0], truth.y, 33);
      expect_difference(run.outputs[1], truth.dx, truth.terms, 33);
      expect_fused("layer_norm");
    }
  }
}

// A frozen vector has no gradient, and costs no launch.
TEST(LayerNormMetal, LaunchesWhatIsAskedFor) {
  const Arrays inputs{normal({9, 33}, 1), normal({33}, 2), normal({33}, 3)};
  for (const int argnum : {0, 1, 2}) {
    mlx::reset_fusion_report();
    const auto gradient = [argnum](const Arrays& in) {
      const auto loss = [](const Arrays& v) {
        return mx::sum(mx::square(mlx::layer_norm(v[0], v[1], v[2], kEps)));
      };
      return mx::grad(loss, std::vector<int>{argnum})(in);
    };
    const Evaluated run = evaluate_on_metal(gradient, inputs);
    EXPECT_EQ(run.fault, "");
    EXPECT_EQ(run.launched.size(), argnum == 0 ? 2u : 3u);
    expect_fused("layer_norm");
    expect_same(gradient, inputs);
  }
}

TEST(LayerNormMetal, Transforms) {
  const auto x = normal({4, 3, 7}, 1), tangent = normal({4, 3, 7}, 2), weight = normal({7}, 3),
             bias = normal({7}, 4), weights = normal({4, 7}, 5);
  const RowOp norm = [](const Arrays& in) { return mlx::layer_norm(in[0], in[1], in[2], kEps); };
  expect_transforms_hold(norm, {x, weight, bias}, {1, -1, -1}, {tangent, bias, weight});
  expect_transforms_hold(norm, {x, weights, bias}, {0, 0, -1}, {tangent, weights, weight});
  expect_folded(norm, {x, weight, bias}, {1, -1, -1});
  const RowOp bare = [](const Arrays& in) {
    return mlx::layer_norm(in[0], std::nullopt, std::nullopt, kEps);
  };
  expect_transforms_hold(bare, {x}, {0}, {tangent});
}

TEST(LayerNormMetal, LaunchesStayWithinLimits) {
  for_shapes([](std::int64_t rows, std::int64_t features) {
    const TensorView x = on_metal(DType::kFloat16, {rows, features});
    const TensorView vector = on_metal(DType::kFloat32, {features});
    const TensorView moments = on_metal(DType::kFloat32, {rows});
    LayerNormForward forward;
    forward.x = x, forward.weight = vector, forward.y = x;
    LayerNormBackward backward;
    backward.dy = x, backward.x = x, backward.weight = vector, backward.mean = moments;
    backward.rstd = moments, backward.dx = x, backward.dweight = vector, backward.dbias = vector;
    EXPECT_EQ(supports(forward).reason, supports(backward).reason);
    if (!supports(forward)) return;
    const metal::Plan there = metal::plan(forward), back = metal::plan(backward);
    EXPECT_EQ(there.temporaries.size(), 2u);  // for mean and rstd, which are not asked for
    ASSERT_EQ(there.steps.size(), 1u);
    expect_within_limits(there);
    expect_rows_covered(there.steps[0], rows);
    expect_within_limits(back);
    expect_blocks_covered(back, 2, rows, features);
    expect_rows_covered(back.steps[0], rows);
  });
}

TEST(LayerNormMetal, SaysWhyNot) {
  const TensorView x = on_metal(DType::kFloat32, {3, 4}), integers = on_metal(DType::kInt32, {4});
  LayerNormForward forward;
  forward.x = x, forward.y = x, forward.weight = integers;
  EXPECT_EQ(supports(forward).reason, "no Metal kernel takes dtype int32");
  LayerNormBackward backward;
  backward.dy = x, backward.x = x, backward.dx = x;
  EXPECT_EQ(supports(backward).reason, "mean and rstd: Metal kernels read what forward wrote");
}

}  // namespace
}  // namespace graft::standin
