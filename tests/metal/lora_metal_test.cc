// The shaders of src/lora and src/product: the text that Metal would compile, executed on the
// stand-in.
#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "graft/mlx/detail/lora_primitive.h"
#include "graft/mlx/fusion.h"
#include "graft/mlx/lora.h"
#include "hosts/mlx/truth.h"
#include "metal/evaluate.h"
#include "metal/layouts.h"

namespace graft::standin {
namespace {

using mlx::testing::Matrix;
using mlx::testing::matrix;
using mlx::testing::normal;

Matrix true_delta(const mx::array& x, const mx::array& a, const mx::array& b, double scaling) {
  return scaling * ((matrix(x) * matrix(a)) * matrix(b));
}

mx::array composed_delta(const mx::array& x, const mx::array& a, const mx::array& b,
                         float scaling) {
  const mx::Dtype dtype = x.dtype();
  const auto y = mx::matmul(mx::matmul(x, mx::astype(a, dtype)), mx::astype(b, dtype));
  return mx::multiply(y, mx::array(scaling, dtype));
}

// Where clang is, evaluate_on_metal puts every text through it, with address spaces.
TEST(LoraMetal, TextsPassTheSyntaxCheck) {
  if (std::system("command -v clang > /dev/null") != 0) {
    GTEST_SKIP() << "there is no clang here for tools/check_shaders.py --syntax";
  }
}

struct Shape {
  int rows, in, out, rank;
};

// Few rows and many, with every kind of tail; inputs of 1, 7 and 8 elements, which MLX passes in
// other address spaces.
const std::vector<Shape> kShapes = {{1, 1, 1, 1},     {1, 7, 8, 1},     {7, 1, 1, 8},
                                    {4, 37, 45, 3},   {5, 33, 31, 9},   {8, 64, 32, 8},
                                    {17, 40, 65, 16}, {13, 5, 300, 33}, {3, 40, 50, 256},
                                    {9, 12, 9, 255},  {257, 19, 70, 9}};

// In simdgroup matrices: blocks of 16 and 32 rows, ranks of one pass over x and of several.
const std::vector<Shape> kTileShapes = {{256, 64, 64, 16},  {300, 33, 65, 40},  {259, 7, 9, 100},
                                        {256, 12, 70, 256}, {1025, 20, 66, 17}, {1030, 17, 3, 64}};

void check_delta(const Shape& shape, mx::Dtype dtype) {
  const auto& [rows, in, out, rank] = shape;
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

TEST(LoraMetal, DeltaIsAsGoodAsMlx) {
  for (const Shape& shape : kShapes) {
    for (const mx::Dtype dtype : {mx::float32, mx::bfloat16, mx::float16}) {
      check_delta(shape, dtype);
    }
  }
  for (const Shape& shape : kTileShapes) check_delta(shape, mx::float32);
}

// x, a, b, dy -> dx, da, db of the tensor function, through its custom function.
Arrays delta_gradients(const Arrays& arrays) {
  const auto y = [](const Arrays& p) {
    return Arrays{mlx::lora_forward_fused(p[0], p[1], p[2], 0.5f)};
  };
  return mx::vjp(y, {arrays[0], arrays[1], arrays[2]}, {arrays[3]}).second;
}

Arrays composed_gradients(const Arrays& arrays) {
  const auto y = [](const Arrays& p) { return Arrays{composed_delta(p[0], p[1], p[2], 0.5f)}; };
  return mx::vjp(y, {arrays[0], arrays[1], arrays[2]}, {arrays[3]}).second;
}

void check_delta_gradients(const Shape& shape, mx::Dtype dtype) {
  const auto& [rows, in, out, rank] = shape;
  SCOPED_TRACE(testing::PrintToString(std::vector<int>{rows, in, out, rank}));
  const auto x = normal({rows, in}, 1, 1.0f, dtype), dy = normal({rows, out}, 4, 1.0f, dtype);
  const auto a = normal({in, rank}, 2, 0.3f, dtype), b = normal({rank, out}, 3, 0.3f, dtype);
  mlx::reset_fusion_report();
  const Evaluated run = evaluate_on_metal(delta_gradients, {x, a, b, dy});
  EXPECT_EQ(run.fault, "");
  EXPECT_EQ(run.launched.size(), 4u);  // y and h; dx and g; da; db
  const Arrays composed = composed_gradients({x, a, b, dy});
  const Matrix g = matrix(dy) * transpose(matrix(b)), h = matrix(x) * matrix(a);
  const int terms = in + out + rank + rows;
  mlx::testing::expect_as_good_as(run.outputs[0], composed[0], 0.5 * (g * transpose(matrix(a))),
                                  terms);
  mlx::testing::expect_as_good_as(run.outputs[1], composed[1], 0.5 * (transpose(matrix(x)) * g),
                                  terms);
  mlx::testing::expect_as_good_as(run.outputs[2], composed[2], 0.5 * (transpose(h) * matrix(dy)),
                                  terms);
  bool backward = false;
  for (const auto& record : mlx::fusion_report()) {
    EXPECT_TRUE(record.fused) << record.reason;
    backward |= record.pass == mlx::Pass::kBackward;
  }
  EXPECT_TRUE(backward);
}

TEST(LoraMetal, GradientsOfTheDeltaAreAsGoodAsMlx) {
  for (const Shape& shape : kShapes) {
    for (const mx::Dtype dtype : {mx::float32, mx::bfloat16}) check_delta_gradients(shape, dtype);
  }
  for (const Shape& shape : kTileShapes) check_delta_gradients(shape, mx::float32);
}

// Derivatives that no kernel makes are composed, and right: all second ones, forward mode, vmap.
template <class Fused, class Composed>
void expect_other_derivatives(const Fused& fused, const Composed& composed, const Arrays& p,
                              const mx::array& dy) {
  // The gradient in every operand of the sum of squares of the gradient in one of them.
  for (int inner = 0; inner < 3; ++inner) {
    SCOPED_TRACE(inner);
    const auto second = [&](const auto& y, const Arrays& operands) {
      const auto squares = [&](const Arrays& q) {
        const auto of_one = [&](const Arrays& one) {
          Arrays all = q;
          all[static_cast<std::size_t>(inner)] = one[0];
          return Arrays{y(all)};
        };
        const auto gradient = mx::vjp(of_one, {q[static_cast<std::size_t>(inner)]}, {dy}).second[0];
        return mx::sum(mx::square(gradient));
      };
      return mx::grad(squares, std::vector<int>{0, 1, 2})(operands);
    };
    const Evaluated run = evaluate_on_metal([&](const Arrays& q) { return second(fused, q); }, p);
    EXPECT_EQ(run.fault, "");
    const Arrays truth = second(composed, p);
    for (std::size_t i = 0; i < 3; ++i) {
      const auto values = mlx::testing::values(truth[i]);
      EXPECT_LT(mlx::testing::max_error(run.outputs[i], values),
                1e-4 * (1 + mlx::testing::largest(values)))
          << i;
    }
  }
  const auto tangent = [&](const auto& y, const Arrays& q) {
    return mx::jvp([&](const Arrays& v) { return Arrays{y(v)}; }, q, q).second;
  };
  const Evaluated forward =
      evaluate_on_metal([&](const Arrays& q) { return tangent(fused, q); }, p);
  EXPECT_EQ(forward.fault, "");
  EXPECT_LT(
      mlx::testing::max_error(forward.outputs[0], mlx::testing::values(tangent(composed, p)[0])),
      1e-4);

  const auto mapped = [&](const auto& y, const Arrays& q) {
    const auto of_x = [&](const mx::array& x) {
      Arrays all = q;
      all[0] = x;
      return y(all);
    };
    return Arrays{mx::vmap(of_x)(mx::stack({q[0], mx::negative(q[0])}))};
  };
  const Evaluated vectorized =
      evaluate_on_metal([&](const Arrays& q) { return mapped(fused, q); }, p);
  EXPECT_EQ(vectorized.fault, "");
  EXPECT_LT(
      mlx::testing::max_error(vectorized.outputs[0], mlx::testing::values(mapped(composed, p)[0])),
      1e-4);
}

TEST(LoraMetal, OtherDerivativesOfTheDelta) {
  expect_other_derivatives(
      [](const Arrays& p) { return mlx::lora_forward_fused(p[0], p[1], p[2], 0.5f); },
      [](const Arrays& p) { return composed_delta(p[0], p[1], p[2], 0.5f); },
      {normal({5, 7}, 1), normal({7, 3}, 2), normal({3, 4}, 3)}, normal({5, 4}, 4));
}

TEST(LoraMetal, OtherDerivativesOfTheLinear) {
  const auto w = normal({4, 7}, 5);
  expect_other_derivatives(
      [&](const Arrays& p) { return mlx::lora_linear(p[0], w, std::nullopt, p[1], p[2], 0.5f); },
      [&](const Arrays& p) {
        return mx::add(mx::matmul(p[0], mx::transpose(w)), composed_delta(p[0], p[1], p[2], 0.5f));
      },
      {normal({5, 7}, 1), normal({7, 3}, 2), normal({3, 4}, 3)}, normal({5, 4}, 4));
}

// With tiles that are whole and tiles that are not in each direction, small ones and large; few
// rows, of which kernels of their own make h in the same launch, or read it.
const std::vector<Shape> kLinearShapes = {
    {1, 1, 1, 1},     {1, 7, 8, 1},    {33, 16, 32, 8},   {32, 40, 65, 9},  {5, 100, 7, 16},
    {70, 33, 31, 33}, {3, 300, 67, 8}, {4, 130, 33, 130}, {520, 9, 505, 3}, {520, 505, 9, 19}};

// x, w, bias, a, b, dy -> y, dx, da, db and the gradients of w and bias.
Arrays linear_and_gradients(const Arrays& arrays, const mlx::DropoutState& dropout = {}) {
  const auto y = [&](const Arrays& p) {
    return Arrays{mlx::lora_linear(p[0], p[1], p[2], p[3], p[4], 0.5f, dropout)};
  };
  const Arrays primals(arrays.begin(), arrays.begin() + 5);
  const auto [outputs, gradients] = mx::vjp(y, primals, {arrays[5]});
  Arrays all{outputs[0]};
  all.insert(all.end(), gradients.begin(), gradients.end());
  return all;
}

Arrays linear_operands(const Shape& shape, mx::Dtype dtype) {
  const auto [rows, in, out, rank] = shape;
  return {normal({rows, in}, 1, 1.0f, dtype),  normal({out, in}, 2, 0.3f, dtype),
          normal({out}, 3, 1.0f, dtype),       normal({in, rank}, 4, 0.3f, dtype),
          normal({rank, out}, 5, 0.3f, dtype), normal({rows, out}, 6, 1.0f, dtype)};
}

TEST(LoraMetal, LinearAndItsGradientsAreAsGoodAsMlx) {
  for (const Shape& shape : kLinearShapes) {
    for (const mx::Dtype dtype : {mx::float32, mx::bfloat16, mx::float16}) {
      SCOPED_TRACE(
          testing::PrintToString(std::vector<int>{shape.rows, shape.in, shape.out, shape.rank}));
      const Arrays p = linear_operands(shape, dtype);
      mlx::reset_fusion_report();
      const Evaluated run =
          evaluate_on_metal([](const Arrays& in) { return linear_and_gradients(in); }, p);
      EXPECT_EQ(run.fault, "");
      const bool shrinks = shape.rows <= 4 && shape.rows * shape.rank <= 512;
      EXPECT_EQ(run.launched.size(), shrinks ? 5u : 6u);  // h, y, or both in one; g, dx; da; db
      const auto composed = [](const Arrays& q) {
        const auto base = mx::add(mx::matmul(q[0], mx::transpose(q[1])), q[2]);
        return Arrays{mx::add(base, composed_delta(q[0], q[3], q[4], 0.5f))};
      };
      const auto [y, gradients] = mx::vjp(composed, Arrays(p.begin(), p.begin() + 5), {p[5]});
      const Matrix x = matrix(p[0]), w = matrix(p[1]), a = matrix(p[3]), b = matrix(p[4]),
                   dy = matrix(p[5]);
      Matrix bias(x.rows, w.rows);
      for (std::size_t i = 0; i < bias.data.size(); ++i) {
        bias.data[i] = matrix(p[2]).data[i % w.rows];
      }
      const Matrix g = dy * transpose(b);
      const int terms = shape.in + shape.out + shape.rank + shape.rows;
      const auto check = [&](std::size_t i, const mx::array& plain, const Matrix& truth) {
        mlx::testing::expect_as_good_as(run.outputs[i], plain, truth, terms);
      };
      check(0, y[0], x * transpose(w) + bias + 0.5 * ((x * a) * b));
      check(1, gradients[0], dy * w + 0.5 * (g * transpose(a)));
      check(2, gradients[1], transpose(dy) * x);
      check(4, gradients[3], 0.5 * (transpose(x) * g));
      check(5, gradients[4], 0.5 * (transpose(x * a) * dy));
      for (const auto& record : mlx::fusion_report()) EXPECT_TRUE(record.fused) << record.reason;
    }
  }
}

// The masks are those of the CPU, forward and backward, so y and all gradients are the same.
TEST(LoraMetal, DropoutIsTheSameAsOnTheCpu) {
  for (const Shape& shape :
       {Shape{33, 37, 40, 8}, Shape{5, 7, 9, 3}, Shape{2, 7, 9, 3}, Shape{520, 505, 9, 8}}) {
    Arrays p = linear_operands(shape, mx::float32);
    p.push_back(mx::array(std::uint64_t{0x1234567890abcdef}, mx::uint64));
    p.push_back(mx::array(std::uint64_t{0xfffffffff}, mx::uint64));
    const auto function = [](const Arrays& in) {
      return linear_and_gradients(in, mlx::DropoutState{0.4f, in[6], in[7]});
    };
    const Evaluated run = evaluate_on_metal(function, p);
    EXPECT_EQ(run.fault, "");
    const Arrays cpu = function(p);
    for (std::size_t i = 0; i < cpu.size(); ++i) {
      EXPECT_LT(mlx::testing::max_error(run.outputs[i], mlx::testing::values(cpu[i])),
                1e-5 * (1 + mlx::testing::largest(mlx::testing::values(cpu[i]))))
          << i;
    }
  }
}

// Matrices come from memory and go back to it whole: which lane holds what matters not.
TEST(LoraMetal, LinearDoesNotDependOnTheLayoutOfMatrices) {
  const Arrays p = linear_operands({33, 37, 40, 8}, mx::float32);
  const auto function = [](const Arrays& in) { return linear_and_gradients(in); };
  const Evaluated run = evaluate_on_metal(function, p);
  const Evaluated other = evaluate_on_metal(function, p, 0, kTransposed);
  EXPECT_EQ(run.fault + other.fault, "");
  for (std::size_t i = 0; i < run.outputs.size(); ++i) {
    EXPECT_EQ(mlx::testing::values(other.outputs[i]), mlx::testing::values(run.outputs[i])) << i;
  }
}

// The tensor function of the delta alone has no dropout yet; its kernels do.
TEST(LoraMetal, DropoutOfTheDelta) {
  mlx::detail::LoraCall call;
  call.scaling = 0.5f;
  call.dropout = 0.4f;
  const mx::Stream s = mx::default_stream(mx::Device::cpu);
  const auto with_gradients = [](const auto& y, const Arrays& in) {
    const auto [outputs, gradients] = mx::vjp(
        [&](const Arrays& p) {
          return Arrays{y({p[0], p[1], p[2], in[4], in[5]})};
        },
        {in[0], in[1], in[2]}, {in[3]});
    return Arrays{outputs[0], gradients[0], gradients[1], gradients[2]};
  };
  for (const auto& [rows, in, out, rank] :
       {Shape{3, 37, 40, 8}, Shape{33, 37, 40, 8}, Shape{260, 19, 33, 9}}) {
    const Arrays p{normal({rows, in}, 1),
                   normal({in, rank}, 2, 0.3f),
                   normal({rank, out}, 3, 0.3f),
                   normal({rows, out}, 4),
                   mx::array(std::uint64_t{0x1234567890abcdef}, mx::uint64),
                   mx::array(std::uint64_t{0xfffffffff}, mx::uint64)};
    const Evaluated run = evaluate_on_metal(
        [&](const Arrays& arrays) {
          return with_gradients(
              [&](const Arrays& q) { return mlx::detail::lora(call, q, {"lora_delta"}, s); },
              arrays);
        },
        p);
    EXPECT_EQ(run.fault, "");
    EXPECT_EQ(run.launched.size(), 4u);
    const Arrays composed = with_gradients(
        [&](const Arrays& q) { return mlx::detail::composed_lora(call, q, s)[0]; }, p);
    for (std::size_t i = 0; i < composed.size(); ++i) {
      const auto truth = mlx::testing::values(composed[i]);
      EXPECT_LT(mlx::testing::max_error(run.outputs[i], truth),
                1e-5 * (1 + mlx::testing::largest(truth)))
          << rows << " rows, " << i;
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
