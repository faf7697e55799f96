// The shaders of src/rms_norm/metal.metal: the text that Metal would compile, executed on the
// stand-in.
#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <string>

#include "graft/metal.h"
#include "graft/mlx/fusion.h"
#include "graft/mlx/rms_norm.h"
#include "graft/rms_norm.h"
#include "hosts/mlx/truth.h"
#include "metal/evaluate.h"
#include "metal/rows_test.h"
#include "rms_norm/reference.h"

namespace graft::standin {
namespace {

using mlx::testing::expect_rounded;
using mlx::testing::normal;
using mlx::testing::values;

constexpr float kEps = 1e-3f;

// The reference's y, ds and dweight of s, weight, dy and perhaps dsum; and the first term of ds.
struct Truth {
  std::vector<double> y, ds, dweight, terms;

  Truth(const mx::array& s, const mx::array& weight, const mx::array& dy,
        const std::optional<mx::array>& dsum = std::nullopt) {
    auto in = floats(s), w = floats(weight), slope = floats(dy), out = in, gradient = in,
         of_weight = w, past = dsum ? floats(*dsum) : in;
    RmsNormForward forward;
    forward.x = rows_view(in, s), forward.weight = vector_view(w), forward.eps = kEps;
    forward.y = rows_view(out, s);
    reference::rms_norm_forward(forward);
    RmsNormBackward backward;
    backward.dy = rows_view(slope, s), backward.s = rows_view(in, s);
    backward.weight = vector_view(w), backward.eps = kEps;
    if (dsum) backward.dsum = rows_view(past, s);
    backward.ds = rows_view(gradient, s), backward.dweight = vector_view(of_weight);
    reference::rms_norm_backward(backward);
    y.assign(out.begin(), out.end()), ds.assign(gradient.begin(), gradient.end());
    dweight.assign(of_weight.begin(), of_weight.end());
    for (std::size_t i = 0; i < in.size(); ++i) {
      terms.push_back(in[i] == 0 ? 0 : double{slope[i]} * y[i] / double{in[i]});
    }
  }
};

// x, weight, dy -> y, dx, dweight.
Arrays value_and_gradients(const Arrays& arrays) {
  const auto y = [](const Arrays& in) { return Arrays{mlx::rms_norm(in[0], in[1], kEps)}; };
  const auto [value, gradients] = mx::vjp(y, {arrays[0], arrays[1]}, {arrays[2]});
  return {value[0], gradients[0], gradients[1]};
}

void expect_right(const Arrays& inputs, std::uint32_t seed) {
  const Evaluated run = evaluate_on_metal(value_and_gradients, inputs, seed);
  EXPECT_EQ(run.fault, "");
  const Truth truth(inputs[0], inputs[1], inputs[2]);
  const int features = inputs[1].shape(0), rows = rows_of(inputs[0]);
  EXPECT_EQ(run.launched.size(), features == 0 ? 0u : rows == 0 ? 1u : 4u);  // y, ds, dweight twice
  EXPECT_EQ(run.outputs[0].shape(), inputs[0].shape());
  EXPECT_EQ(run.outputs[0].dtype(), inputs[0].dtype());
  EXPECT_EQ(run.outputs[1].shape(), inputs[0].shape());
  EXPECT_EQ(run.outputs[1].dtype(), inputs[0].dtype());
  EXPECT_EQ(run.outputs[2].shape(), inputs[1].shape());
  EXPECT_EQ(run.outputs[2].dtype(), inputs[1].dtype());
  expect_rounded(run.outputs[0], truth.y, features);
  expect_difference(run.outputs[1], truth.ds, truth.terms, features);
  expect_rounded(run.outputs[2], truth.dweight, features + rows);
}

TEST(RmsNormMetal, ValueAndGradientsOnHostileShapes) {
  for (const mx::Shape& shape : row_shapes()) {
    for (const mx::Dtype dtype : dtypes_for(shape)) {
      for (const std::uint32_t seed : {1u, 2u}) {
        SCOPED_TRACE(::testing::Message() << dtype << " " << shape);
        mlx::reset_fusion_report();
        expect_right({normal(shape, 1, 2.0f, dtype), normal({shape.back()}, 2, 1.0f, dtype),
                      normal(shape, 3, 1.0f, dtype)},
                     seed);
        expect_fused("rms_norm");
      }
    }
  }
}

// Rows enough for large blocks, of which the last is not full.
TEST(RmsNormMetal, ManyRows) {
  expect_right({normal({2050, 5}, 1), normal({5}, 2), normal({2050, 5}, 3)}, 2);
}

TEST(RmsNormMetal, SmallStridedAndEmptyOperands) {
  for (const mx::Shape& shape : {mx::Shape{1}, mx::Shape{7}, mx::Shape{8}, mx::Shape{7, 1},
                                 mx::Shape{8, 1}, mx::Shape{0, 5}, mx::Shape{3, 0}}) {
    expect_right({normal(shape, 1), normal({shape.back()}, 2), normal(shape, 3)}, 0);
  }
  expect_right({mx::transpose(normal({33, 3, 2}, 1)), mx::slice(normal({66}, 2), {0}, {66}, {2}),
                mx::transpose(normal({33, 3, 2}, 3))},
               2);
}

TEST(RmsNormMetal, AWeightOfAnotherDtype) {
  expect_right({normal({9, 33}, 1, 1.0f, mx::bfloat16), normal({33}, 2),
                normal({9, 33}, 3, 1.0f, mx::bfloat16)},
               1);
}

// x, residual, weight, dy, dsum -> y, sum, dx, dresidual, dweight.
Arrays value_and_gradients_with_residual(const Arrays& arrays) {
  const auto outputs = [](const Arrays& in) {
    const auto [y, sum] = mlx::add_rms_norm(in[0], in[1], in[2], kEps);
    return Arrays{y, sum};
  };
  const auto [value, gradients] =
      mx::vjp(outputs, {arrays[0], arrays[1], arrays[2]}, {arrays[3], arrays[4]});
  return {value[0], value[1], gradients[0], gradients[1], gradients[2]};
}

TEST(RmsNormMetal, WithResidual) {
  for (const mx::Shape& shape : {mx::Shape{9, 33}, mx::Shape{2, 1025}, mx::Shape{1, 8209}}) {
    for (const mx::Dtype dtype : {mx::float32, mx::bfloat16, mx::float16}) {
      if (shape.back() > 1000 && dtype != mx::bfloat16) continue;
      SCOPED_TRACE(::testing::Message() << dtype << " " << shape);
      const auto x = normal(shape, 1, 1.0f, dtype), residual = normal(shape, 2, 1.0f, dtype),
                 weight = normal({shape.back()}, 3, 1.0f, dtype),
                 dy = normal(shape, 4, 1.0f, dtype), dsum = normal(shape, 5, 1.0f, dtype);
      mlx::reset_fusion_report();
      const Evaluated run =
          evaluate_on_metal(value_and_gradients_with_residual, {x, residual, weight, dy, dsum}, 1);
      EXPECT_EQ(run.fault, "");
      const mx::array sum = mx::add(x, residual);  // rounded
      const Truth truth(sum, weight, dy, dsum);
      const int features = shape.back();
      expect_rounded(run.outputs[0], truth.y, features);
      EXPECT_EQ(values(run.outputs[1]), values(sum));
      expect_difference(run.outputs[2], truth.ds, truth.terms, features);
      EXPECT_EQ(values(run.outputs[2]), values(run.outputs[3]));
      expect_rounded(run.outputs[4], truth.dweight, features + rows_of(x));
      expect_fused("rms_norm");
    }
  }
}

// A frozen weight has no gradient, and costs no launch; and the other way round.
TEST(RmsNormMetal, LaunchesWhatIsAskedFor) {
  const auto x = normal({9, 33}, 1), weight = normal({33}, 2);
  for (const int argnum : {0, 1}) {
    mlx::reset_fusion_report();
    const Evaluated run = evaluate_on_metal(
        [argnum](const Arrays& in) {
          const auto loss = [](const Arrays& v) {
            return mx::sum(mlx::rms_norm(v[0], v[1], kEps));
          };
          return mx::grad(loss, std::vector<int>{argnum})(in);
        },
        {x, weight});
    EXPECT_EQ(run.fault, "");
    EXPECT_EQ(run.launched.size(), argnum == 0 ? 2u : 3u);
    expect_fused("rms_norm");
  }
}

TEST(RmsNormMetal, Transforms) {
  const auto x = normal({4, 3, 7}, 1), residual = normal({4, 3, 7}, 2), weight = normal({7}, 3),
             weights = normal({4, 7}, 4);
  const RowOp norm = [](const Arrays& in) { return mlx::rms_norm(in[0], in[1], kEps); };
  expect_transforms_hold(norm, {x, weight}, {1, -1}, {residual, weight});
  expect_transforms_hold(norm, {x, weights}, {0, 0}, {residual, weights});
  expect_folded(norm, {x, weight}, {1, -1});
  const RowOp with_residual = [](const Arrays& in) {
    const auto [y, sum] = mlx::add_rms_norm(in[0], in[1], in[2], kEps);
    return mx::multiply(y, mx::sin(sum));
  };
  expect_transforms_hold(with_residual, {x, residual, weight}, {0, 0, -1}, {residual, x, weight});
  expect_transforms_hold(with_residual, {x, residual, weights}, {0, 0, 0}, {residual, x, weights});
  expect_folded(with_residual, {x, residual, weight}, {0, 0, -1});
}

TEST(RmsNormMetal, LaunchesStayWithinLimits) {
  for_shapes([](std::int64_t rows, std::int64_t features) {
    for (const bool residual : {false, true}) {
      const TensorView x = on_metal(DType::kFloat16, {rows, features});
      const TensorView vector = on_metal(DType::kFloat32, {features});
      const TensorView rstd = on_metal(DType::kFloat32, {rows});
      RmsNormForward forward;
      forward.x = x, forward.weight = vector, forward.y = x, forward.rstd = rstd;
      if (residual) forward.residual = x, forward.sum = x;
      RmsNormBackward backward;
      backward.dy = x, backward.s = x, backward.weight = vector, backward.rstd = rstd;
      if (residual) backward.dsum = x;
      backward.ds = x, backward.dweight = vector;
      EXPECT_EQ(supports(forward).reason, supports(backward).reason);
      if (!supports(forward)) continue;
      const metal::Plan there = metal::plan(forward), back = metal::plan(backward);
      ASSERT_EQ(there.steps.size(), 1u);
      expect_within_limits(there);
      expect_rows_covered(there.steps[0], rows);
      expect_within_limits(back);
      expect_blocks_covered(back, 1, rows, features);
      expect_rows_covered(back.steps[0], rows);
    }
  });
}

TEST(RmsNormMetal, SaysWhyNot) {
  const TensorView x = on_metal(DType::kFloat32, {3, 4});
  RmsNormForward forward;
  forward.x = x, forward.y = x, forward.weight = on_metal(DType::kInt32, {4});
  EXPECT_EQ(supports(forward).reason, "no Metal kernel takes dtype int32");
  RmsNormBackward backward;
  backward.dy = x, backward.s = x, backward.weight = on_metal(DType::kFloat32, {4});
  EXPECT_EQ(supports(backward).reason, "rstd: Metal kernels read what forward wrote");
}

}  // namespace
}  // namespace graft::standin
