#include "graft/mlx/linear.h"

#include <stdexcept>

#include "graft/mlx/fusion.h"
#include "kernels_here.h"
#include "truth.h"

namespace graft::mlx {
namespace {

using testing::expect_as_good_as;
using testing::Matrix;
using testing::matrix;
using testing::max_error;
using testing::normal;
using testing::values;

using Arrays = std::vector<mx::array>;

TEST(Linear, ValueAndGradients) {
  const auto x = normal({2, 9, 33}, 1);
  const auto w = normal({21, 33}, 2);
  const auto bias = normal({21}, 3);
  const auto dy = normal({2, 9, 21}, 4);
  const auto weight = pack(w);
  const auto fused = [&](const Arrays& in) { return Arrays{linear(in[0], weight, bias)}; };
  const auto plain = [&](const Arrays& in) { return Arrays{linear(in[0], in[1], in[2])}; };
  const auto composed = [&](const Arrays& in) {
    return Arrays{mx::add(mx::matmul(in[0], mx::transpose(in[1])), in[2])};
  };
  reset_fusion_report();
  const auto [y, dx] = mx::vjp(fused, {x}, {dy});
  const auto [y2, gradients] = mx::vjp(plain, {x, w, bias}, {dy});
  const auto [y3, gradients3] = mx::vjp(composed, {x, w, bias}, {dy});

  Matrix truth = matrix(x) * transpose(matrix(w));
  const auto added = values(bias);
  for (std::size_t i = 0; i < truth.data.size(); ++i) truth.data[i] += added[i % 21];
  expect_as_good_as(y[0], y3[0], truth);
  expect_as_good_as(y2[0], y3[0], truth);
  const Matrix true_dx = matrix(dy) * matrix(w);
  expect_as_good_as(dx[0], gradients3[0], true_dx);
  expect_as_good_as(gradients[0], gradients3[0], true_dx);
  expect_as_good_as(gradients[1], gradients3[1], transpose(matrix(dy)) * matrix(x));
  testing::expect_fused();
  EXPECT_LE(max_error(gradients[2], values(gradients3[2])), 1e-5);
}

TEST(Linear, TransposedPlainWeight) {
  const auto x = normal({4, 6}, 1);
  const auto w = mx::transpose(normal({6, 5}, 2));
  EXPECT_LE(max_error(linear(x, w), matrix(x) * transpose(matrix(w))), 1e-5);
}

// The usual cotangent of a sum is one number, broadcast: every stride is zero.
TEST(Linear, BroadcastCotangent) {
  const auto w = normal({5, 6}, 1);
  const auto weight = pack(w);
  const auto dx = mx::grad([&](const mx::array& x) { return mx::sum(linear(x, weight)); })(
      normal({2, 3, 6}, 2));
  Matrix ones(6, 5);
  for (double& v : ones.data) v = 1;
  EXPECT_LE(max_error(dx, ones * matrix(w)), 1e-5);
}

TEST(Linear, TransformsOfDx) {
  const auto weight = pack(normal({5, 6}, 1));
  const auto w = unpack(weight);
  const auto slope = [](auto op) {
    return [op](const mx::array& x) {
      return mx::grad([&](const mx::array& v) { return mx::sum(mx::sin(op(v))); })(x);
    };
  };
  const auto fused = slope([&](const mx::array& x) { return linear(x, weight); });
  const auto plain = slope([&](const mx::array& x) { return mx::matmul(x, mx::transpose(w)); });
  const auto x = normal({4, 3, 6}, 2);
  EXPECT_LE(max_error(mx::vmap(fused)(x), values(mx::vmap(plain)(x))), 1e-4);
  const auto tangent = normal({4, 3, 6}, 3);
  const std::function<mx::array(const mx::array&)> f = fused;
  const std::function<mx::array(const mx::array&)> p = plain;
  EXPECT_LE(max_error(mx::jvp(f, x, tangent).second, values(mx::jvp(p, x, tangent).second)), 1e-3);
}

TEST(Linear, PackRoundsAndUnpackReturns) {
  const auto w = normal({7, 9}, 1);
  EXPECT_EQ(values(unpack(pack(w))), values(w));
  EXPECT_EQ(values(unpack(pack(w, mx::bfloat16))), values(mx::astype(w, mx::bfloat16)));
  EXPECT_EQ(unpack(pack(w, mx::bfloat16)).dtype(), mx::bfloat16);
  const auto half = mx::astype(w, mx::float16);
  EXPECT_EQ(values(unpack(pack(half))), values(half));
  // An array, as Metal reads it, serves both directions.
  EXPECT_EQ(pack(w, mx::float32, false).serves(Direction::kBackward), testing::on_gpu());
}

TEST(Linear, RejectsWhatDoesNotFit) {
  EXPECT_THROW(linear(normal({2, 7}, 1), pack(normal({5, 6}, 1))), std::invalid_argument);
  EXPECT_THROW(linear(normal({2, 6}, 1), normal({6}, 1)), std::invalid_argument);
  EXPECT_THROW(linear(normal({2, 6}, 1), normal({5, 6}, 1), normal({6}, 1)), std::invalid_argument);
  EXPECT_THROW(linear(mx::ones({2, 6}, mx::int32), normal({5, 6}, 1)), std::invalid_argument);
  EXPECT_THROW(linear(normal({2, 6}, 1), Weight()), std::invalid_argument);
  EXPECT_THROW(pack(normal({5, 6}, 1), mx::int32), std::invalid_argument);
  if (!testing::on_gpu()) {
    EXPECT_THROW(pack(normal({5, 6}, 1), mx::float16), std::invalid_argument);
  }
  EXPECT_THROW(pack(mx::ones({5, 6}, mx::int32)), std::invalid_argument);
  EXPECT_THROW(pack(normal({5}, 1)), std::invalid_argument);
}

}  // namespace
}  // namespace graft::mlx
