// The shaders of src/lora/metal.metal: the text that MLX would compile, executed on the stand-in.
#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <algorithm>
#include <string>

#include "graft/mlx/fusion.h"
#include "graft/mlx/lora.h"
#include "metal/trace.h"
#include "mlx/truth.h"

namespace graft::standin {
namespace {

using mlx::testing::Matrix;
using mlx::testing::matrix;
using mlx::testing::normal;
using Arrays = std::vector<mx::array>;

Matrix true_delta(const mx::array& x, const mx::array& a, const mx::array& b, double scaling) {
  return scaling * ((matrix(x) * matrix(a)) * matrix(b));
}

mx::array composed_delta(const mx::array& x, const mx::array& a, const mx::array& b,
                         float scaling) {
  const mx::Dtype dtype = x.dtype();
  const auto y = mx::matmul(mx::matmul(x, mx::astype(a, dtype)), mx::astype(b, dtype));
  return mx::multiply(y, mx::array(scaling, dtype));
}

struct Shape {
  int rows, in, out, rank;
};

// Few rows and many, with every kind of tail; inputs of 1, 7 and 8 elements, which MLX passes in
// other address spaces.
const std::vector<Shape> kShapes = {
    {1, 1, 1, 1},   {1, 7, 8, 1},     {7, 1, 1, 8},     {4, 37, 45, 3},   {5, 33, 31, 9},
    {8, 64, 32, 8}, {17, 40, 65, 16}, {13, 5, 300, 33}, {3, 40, 50, 256}, {9, 12, 9, 255}};

TEST(LoraMetal, DeltaIsAsGoodAsMlx) {
  for (const auto& [rows, in, out, rank] : kShapes) {
    for (const mx::Dtype dtype : {mx::float32, mx::bfloat16, mx::float16}) {
      SCOPED_TRACE(testing::PrintToString(std::vector<int>{rows, in, out, rank}));
      const auto x = normal({rows, in}, 1, 1.0f, dtype);
      const auto a = normal({in, rank}, 2, 0.3f, dtype), b = normal({rank, out}, 3, 0.3f, dtype);
      mlx::reset_fusion_report();
      const Evaluated run = evaluate_on_metal(
          [](const Arrays& arrays) {
            return Arrays{mlx::lora_forward_fused(arrays[0], arrays[1], arrays[2], 0.5f)};
          },
          {x, a, b});
      EXPECT_EQ(run.fault, "");
      ASSERT_EQ(run.launched.size(), 1u);
      mlx::testing::expect_as_good_as(run.outputs[0], composed_delta(x, a, b, 0.5f),
                                      true_delta(x, a, b, 0.5), in + rank);
      const auto report = mlx::fusion_report();
      ASSERT_EQ(report.size(), 1u);
      EXPECT_TRUE(report[0].fused);
      EXPECT_EQ(report[0].op, "lora_delta");
    }
  }
}

// The plan's first check, whatever order lanes run in.
TEST(LoraMetal, FirstCheckOfThePlan) {
  const auto x = normal({2, 64, 512}, 1), a = normal({512, 8}, 2, 0.05f),
             b = normal({8, 512}, 3, 0.05f);
  for (const std::uint32_t seed : {1u, 2u}) {
    const Evaluated run = evaluate_on_metal(
        [](const Arrays& arrays) {
          return Arrays{mlx::lora_forward_fused(arrays[0], arrays[1], arrays[2], 2.0f)};
        },
        {x, a, b}, seed);
    EXPECT_EQ(run.fault, "");
    EXPECT_LT(mlx::testing::max_error(run.outputs[0], true_delta(x, a, b, 2.0)), 1e-4);
  }
}

// Strided operands, leading dimensions, nothing to do.
TEST(LoraMetal, DeltaTakesAnyOperands) {
  const auto x = normal({3, 2, 10}, 1), a = mx::transpose(normal({6, 10}, 2)),
             b = mx::transpose(normal({17, 6}, 3));
  const auto delta = [](const Arrays& arrays) {
    return Arrays{mlx::lora_forward_fused(arrays[0], arrays[1], arrays[2], 2.0f)};
  };
  const Evaluated run = evaluate_on_metal(delta, {x, a, b});
  EXPECT_EQ(run.fault, "");
  EXPECT_EQ(run.outputs[0].shape(), (mx::Shape{3, 2, 17}));
  EXPECT_LT(mlx::testing::max_error(run.outputs[0], true_delta(x, a, b, 2.0)), 1e-4);
  for (const mx::Shape& shape : {mx::Shape{0, 10}, mx::Shape{4, 0}}) {
    const Evaluated none =
        evaluate_on_metal(delta, {mx::zeros(shape), mx::zeros({shape[1], 6}), normal({6, 5}, 1)});
    EXPECT_EQ(none.fault, "");
    EXPECT_EQ(none.outputs[0].shape(), (mx::Shape{shape[0], 5}));
    EXPECT_EQ(mlx::testing::largest(mlx::testing::values(none.outputs[0])), 0.0);
  }
}

}  // namespace
}  // namespace graft::standin
