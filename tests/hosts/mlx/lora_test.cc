#include "graft/mlx/lora.h"

#include <tuple>

#include "graft/mlx/fused_lora_op.h"
#include "graft/mlx/fusion.h"
#include "messages.h"
#include "truth.h"

namespace graft::mlx {
namespace {

using testing::expect_as_good_as;
using testing::Matrix;
using testing::matrix;
using testing::max_error;
using testing::message_of;
using testing::normal;

mx::array composed_delta(const mx::array& x, const mx::array& a, const mx::array& b, float s) {
  return mx::multiply(mx::matmul(mx::matmul(x, a), b), mx::array(s, x.dtype()));
}

Matrix true_delta(const mx::array& x, const mx::array& a, const mx::array& b, double s) {
  return s * ((matrix(x) * matrix(a)) * matrix(b));
}

std::uint64_t composed_runs() {
  std::uint64_t runs = 0;
  for (const auto& record : fusion_report()) runs += record.fused ? 0 : record.runs;
  return runs;
}

TEST(LoraDelta, FirstCheckOfThePlan) {
  const auto x = normal({2, 64, 512}, 1);
  const auto a = normal({512, 8}, 2, 0.05f);
  const auto b = normal({8, 512}, 3, 0.05f);
  const auto y = lora_forward_fused(x, a, b, 2.0f);
  EXPECT_EQ(y.shape(), (mx::Shape{2, 64, 512}));
  EXPECT_LT(max_error(y, true_delta(x, a, b, 2.0)), 1e-4);
  EXPECT_LT(max_error(composed_delta(x, a, b, 2.0f), true_delta(x, a, b, 2.0)), 1e-4);
}

class LoraDeltaShapes : public ::testing::TestWithParam<std::tuple<int, int, int>> {};

TEST_P(LoraDeltaShapes, AsGoodAsMlx) {
  const auto [batch, sequence, rank] = GetParam();
  const auto x = normal({batch, sequence, 512}, 4);
  const auto a = normal({512, rank}, 5, 0.05f);
  const auto b = normal({rank, 512}, 6, 0.05f);
  reset_fusion_report();
  const auto y = FusedLoRAOp(a, b, 2.0f)(x);
  const auto truth = true_delta(x, a, b, 2.0);
  EXPECT_LT(max_error(y, truth), 1e-4);
  expect_as_good_as(y, composed_delta(x, a, b, 2.0f), truth, 512);
  EXPECT_EQ(composed_runs(), 0u);
}

INSTANTIATE_TEST_SUITE_P(PlanTable, LoraDeltaShapes,
                         ::testing::Combine(::testing::Values(1, 4, 16),
                                            ::testing::Values(32, 128, 512),
                                            ::testing::Values(4, 8, 16, 32)));

TEST(LoraDelta, PeftOrderThroughStrides) {
  const auto x = normal({5, 24}, 7);
  const auto peft_a = normal({6, 24}, 8);  // (rank, in)
  const auto peft_b = normal({17, 6}, 9);  // (out, rank)
  const auto a = mx::transpose(peft_a);
  const auto b = mx::transpose(peft_b);
  expect_as_good_as(lora_forward_fused(x, a, b, 0.5f), composed_delta(x, a, b, 0.5f),
                    true_delta(x, a, b, 0.5));
}

// Leading dimensions that collapse to rows, and ones that do not.
TEST(LoraDelta, StridedInputs) {
  const auto a = normal({10, 3}, 10);
  const auto b = normal({3, 7}, 11);
  const auto check = [&](const mx::array& x) {
    const auto y = lora_forward_fused(x, a, b, 1.5f);
    EXPECT_LE(max_error(y, true_delta(x, a, b, 1.5)), 1e-5) << x.shape();
  };
  const auto base = normal({4, 6, 10}, 12);
  check(mx::transpose(base, {1, 0, 2}));
  check(mx::slice(base, {0, 0, 0}, {4, 6, 10}, {2, 3, 1}));
  check(mx::transpose(normal({4, 10, 6}, 13), {0, 2, 1}));
  check(mx::transpose(normal({10, 6}, 14)));
  check(mx::slice(normal({6, 20}, 15), {0, 3}, {6, 13}));
  check(mx::slice(normal({6, 20}, 16), {0, 0}, {6, 20}, {1, 2}));
  check(mx::broadcast_to(normal({10}, 17), {3, 2, 10}));
  check(mx::broadcast_to(normal({3, 1, 10}, 18), {3, 2, 10}));
  check(normal({10}, 19));
  check(normal({2, 1, 2, 1, 10}, 20));
}

TEST(LoraDelta, EmptyInputs) {
  EXPECT_EQ(
      mx::array(lora_forward_fused(mx::zeros({0, 10}), normal({10, 3}, 1), normal({3, 7}, 2), 1.0f))
          .shape(),
      (mx::Shape{0, 7}));
  const auto loss = [](const std::vector<mx::array>& in) {
    return mx::sum(lora_forward_fused(in[0], in[1], in[2], 1.0f));
  };
  const auto gradients = mx::grad(
      loss, std::vector<int>{0, 1, 2})({mx::zeros({0, 10}), normal({10, 3}, 1), normal({3, 7}, 2)});
  EXPECT_EQ(max_error(gradients[1], Matrix(10, 3)), 0.0);
  EXPECT_EQ(max_error(gradients[2], Matrix(3, 7)), 0.0);
}

struct LinearCase {
  int m;
  int k;
  int n;
  int rank;
  bool bias;
  bool packed;
};

class LoraLinear : public ::testing::TestWithParam<LinearCase> {};

TEST_P(LoraLinear, ValueAndGradients) {
  const auto [m, k, n, rank, with_bias, packed] = GetParam();
  const auto x = normal({m, k}, 21);
  const auto w = normal({n, k}, 22, 0.1f);
  const auto a = normal({k, rank}, 23, 0.1f);
  const auto b = normal({rank, n}, 24, 0.1f);
  const auto dy = normal({m, n}, 25);
  std::optional<mx::array> bias;
  if (with_bias) bias = normal({n}, 26);
  const float scaling = 1.25f;

  const auto fused = [&, with_packed = packed](const std::vector<mx::array>& in) {
    const auto y = with_packed ? lora_linear(in[0], pack(w), bias, in[1], in[2], scaling)
                               : lora_linear(in[0], w, bias, in[1], in[2], scaling);
    return std::vector<mx::array>{y};
  };
  const auto composed = [&](const std::vector<mx::array>& in) {
    auto y =
        mx::add(mx::matmul(in[0], mx::transpose(w)), composed_delta(in[0], in[1], in[2], scaling));
    if (bias) y = mx::add(y, *bias);
    return std::vector<mx::array>{y};
  };
  reset_fusion_report();
  const auto [y, gradients] = mx::vjp(fused, {x, a, b}, {dy});
  const auto [y2, gradients2] = mx::vjp(composed, {x, a, b}, {dy});
  mx::eval(y[0], gradients[0], gradients[1], gradients[2]);

  const Matrix X = matrix(x), W = matrix(w), A = matrix(a), B = matrix(b), G = matrix(dy);
  Matrix Y = X * transpose(W) + double{scaling} * ((X * A) * B);
  if (bias) {
    const auto added = testing::values(*bias);
    for (std::size_t i = 0; i < Y.data.size(); ++i) Y.data[i] += added[i % Y.cols];
  }
  expect_as_good_as(y[0], y2[0], Y, k + rank);
  const Matrix g = G * transpose(B);
  expect_as_good_as(gradients[0], gradients2[0], G * W + double{scaling} * (g * transpose(A)),
                    n + rank);
  expect_as_good_as(gradients[1], gradients2[1], double{scaling} * (transpose(X) * g), m + n);
  expect_as_good_as(gradients[2], gradients2[2], double{scaling} * (transpose(X * A) * G), m + k);
  EXPECT_EQ(composed_runs(), 0u);
}

INSTANTIATE_TEST_SUITE_P(Shapes, LoraLinear,
                         ::testing::Values(LinearCase{1, 16, 16, 1, false, true},
                                           LinearCase{7, 13, 11, 3, true, true},
                                           LinearCase{33, 65, 47, 16, true, false},
                                           LinearCase{128, 96, 200, 8, false, false},
                                           LinearCase{64, 256, 300, 256, true, true}));

// bfloat16 activations, and float32 activations over a bfloat16 weight: both against the true
// product of the rounded operands, where MLX's own bfloat16 ops set the measure.
TEST(LoraLinear, BFloat16) {
  const auto w = normal({40, 48}, 30, 0.2f, mx::bfloat16);
  const auto a = normal({48, 8}, 31, 0.1f);
  const auto b = normal({8, 40}, 32, 0.1f);
  const auto weight = pack(w, mx::bfloat16);
  for (const auto dtype : {mx::bfloat16, mx::float32}) {
    const auto x = normal({3, 5, 48}, 33, 1.0f, dtype);
    reset_fusion_report();
    const auto y = lora_linear(x, weight, std::nullopt, a, b, 2.0f);
    EXPECT_EQ(y.dtype(), dtype);
    const auto rounded = mx::astype(x, mx::bfloat16);
    const auto composed = mx::add(
        mx::matmul(rounded, mx::transpose(w)),
        composed_delta(rounded, mx::astype(a, mx::bfloat16), mx::astype(b, mx::bfloat16), 2.0f));
    const Matrix truth =
        matrix(x) * transpose(matrix(w)) + 2.0 * ((matrix(x) * matrix(a)) * matrix(b));
    EXPECT_LE(max_error(y, truth), 2 * max_error(composed, truth));
    EXPECT_EQ(composed_runs(), 0u);
  }
}

// The gradient's shape and dtype follow the operand's, whatever the kernel writes.
TEST(LoraLinear, GradientsHaveTheOperandsDtype) {
  const auto weight = pack(normal({9, 12}, 40));
  const auto f = [&](const std::vector<mx::array>& in) {
    return mx::sum(lora_linear(in[0], weight, std::nullopt, in[1], in[2], 1.0f));
  };
  const std::vector<mx::array> inputs{normal({4, 12}, 41, 1, mx::bfloat16),
                                      normal({12, 3}, 42, 1, mx::bfloat16), normal({3, 9}, 43)};
  const auto gradients = mx::grad(f, std::vector<int>{0, 1, 2})(inputs);
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(gradients[i].dtype(), inputs[i].dtype());
    EXPECT_EQ(gradients[i].shape(), inputs[i].shape());
  }
}

TEST(LoraLinear, FrozenOperandsHaveGradientsToo) {
  const auto dy = normal({6, 9}, 50);
  const auto f = [&](const std::vector<mx::array>& in) {
    const auto y = lora_linear(in[0], in[3], in[4], in[1], in[2], 0.75f);
    return mx::sum(mx::multiply(y, dy));
  };
  const std::vector<mx::array> inputs{normal({6, 12}, 51), normal({12, 3}, 52), normal({3, 9}, 53),
                                      normal({9, 12}, 54), normal({9}, 55)};
  const auto gradients = mx::grad(f, std::vector<int>{3, 4})(inputs);
  EXPECT_LE(max_error(gradients[0], transpose(matrix(dy)) * matrix(inputs[0])), 1e-4);
  Matrix ones(1, 6);
  for (double& v : ones.data) v = 1;
  EXPECT_LE(max_error(gradients[1], ones * matrix(dy)), 1e-5);
}

TEST(Lora, RejectsWhatDoesNotFit) {
  const auto x = normal({2, 8}, 60);
  const auto a = normal({8, 4}, 61);
  const auto b = normal({4, 6}, 62);
  const auto w = normal({6, 8}, 63);
  EXPECT_EQ(message_of([&] {
              lora_forward_fused(x, a, normal({3, 6}, 1), 1.0f);
            }),
            "[lora_delta] b: expected (4, 6), got (3, 6)");
  EXPECT_EQ(message_of([&] {
              lora_forward_fused(x, normal({7, 4}, 1), b, 1.0f);
            }),
            "[lora_delta] a: expected (8, 4), got (7, 4)");
  EXPECT_EQ(message_of([&] { lora_forward_fused(x, normal({8}, 1), b, 1.0f); }),
            "[lora_delta] a: expected a matrix, got (8)");
  EXPECT_EQ(message_of([&] {
              lora_linear(x, normal({6, 9}, 1), {}, a, b, 1.0f);
            }),
            "[lora_linear] w: expected (6, 8), got (6, 9)");
  EXPECT_EQ(message_of([&] {
              lora_linear(x, pack(normal({5, 8}, 1)), {}, a, b, 1.0f);
            }),
            "[lora_linear] w: expected (6, 8), got (5, 8)");
  EXPECT_EQ(message_of([&] { lora_linear(x, Weight(), {}, a, b, 1.0f); }),
            "[lora_linear] w: expected a weight, got none");
  EXPECT_EQ(message_of([&] { lora_linear(x, w, normal({5}, 1), a, b, 1.0f); }),
            "[lora_linear] bias: expected (6), got (5)");
  EXPECT_EQ(message_of([&] { lora_linear(x, w, {}, a, b, 1.0f, DropoutState{.p = 1.0f}); }),
            "[lora_linear] dropout: expected a chance in [0, 1), got 1.000000");
  EXPECT_EQ(message_of([&] {
              lora_linear(x, w, {}, a, b, 1.0f, DropoutState{.p = 0.1f, .seed = mx::zeros({2})});
            }),
            "[lora_linear] seed: expected one integer, got shape (2)");
  EXPECT_EQ(message_of([&] { lora_forward_fused(x, a, b, NAN); }),
            "[lora_delta] scaling: expected a finite number, got nan");
  EXPECT_EQ(message_of([&] {
              FusedLoRAOp(a, normal({3, 6}, 1), 1.0f);
            }),
            "[lora_delta] b: expected (4, 6), got (3, 6)");
}

}  // namespace
}  // namespace graft::mlx
