#include "graft/mlx/swiglu.h"

#include <stdexcept>

#include "graft/mlx/fusion.h"
#include "kernels_here.h"
#include "truth.h"

namespace graft::mlx {
namespace {

using testing::expect_as_good_as;
using testing::max_error;
using testing::normal;
using testing::values;

using Arrays = std::vector<mx::array>;

mx::array composed(const mx::array& gate, const mx::array& up) {
  return mx::multiply(mx::multiply(gate, mx::sigmoid(gate)), up);
}

TEST(Swiglu, ValueAndGradients) {
  for (const auto dtype : {mx::float32, mx::bfloat16}) {
    const auto gate = normal({3, 5, 19}, 1, 3.0f, dtype);
    const auto up = normal({3, 5, 19}, 2, 1.0f, dtype);
    const auto dy = normal({3, 5, 19}, 3, 1.0f, dtype);
    reset_fusion_report();
    const auto [y, gradients] =
        mx::vjp([](const Arrays& in) { return Arrays{swiglu(in[0], in[1])}; }, {gate, up}, {dy});
    const auto [y2, gradients2] =
        mx::vjp([](const Arrays& in) { return Arrays{composed(in[0], in[1])}; }, {gate, up}, {dy});
    std::vector<double> truth, dgate, dup;
    const auto g = values(gate), u = values(up), d = values(dy);
    for (std::size_t i = 0; i < g.size(); ++i) {
      const double sigmoid = 1 / (1 + std::exp(-g[i]));
      truth.push_back(g[i] * sigmoid * u[i]);
      dgate.push_back(d[i] * u[i] * sigmoid * (1 + g[i] * (1 - sigmoid)));
      dup.push_back(d[i] * g[i] * sigmoid);
    }
    expect_as_good_as(y[0], y2[0], truth);
    expect_as_good_as(gradients[0], gradients2[0], dgate);
    expect_as_good_as(gradients[1], gradients2[1], dup);
    testing::expect_fused();
  }
}

// The halves of one projection, as models that fuse gate and up have them: rows with gaps.
TEST(Swiglu, StridedHalves) {
  const auto both = normal({4, 20}, 1);
  const auto gate = mx::slice(both, {0, 0}, {4, 10});
  const auto up = mx::slice(both, {0, 10}, {4, 20});
  EXPECT_LE(max_error(swiglu(gate, up), values(composed(gate, up))), 1e-5);
  const auto turned = mx::transpose(normal({10, 4}, 2));
  EXPECT_LE(max_error(swiglu(gate, turned), values(composed(gate, turned))), 1e-5);
}

TEST(Swiglu, Transforms) {
  const auto gate = normal({3, 5, 7}, 1);
  const auto up = normal({3, 5, 7}, 2);
  const auto f = [](auto op) {
    return [op](const Arrays& in) { return Arrays{op(in[0], in[1])}; };
  };
  const auto fused = f([](const mx::array& g, const mx::array& u) { return swiglu(g, u); });
  const auto plain = f(composed);
  for (const auto& axes : std::vector<std::vector<int>>{{0, 0}, {1, 1}}) {
    EXPECT_LE(max_error(mx::vmap(fused, axes, {0})({gate, up})[0],
                        values(mx::vmap(plain, axes, {0})({gate, up})[0])),
              1e-5);
  }
  const auto one = mx::take(up, 0, 0);
  EXPECT_LE(max_error(mx::vmap(fused, {0, -1}, {0})({gate, one})[0],
                      values(mx::vmap(plain, {0, -1}, {0})({gate, one})[0])),
            1e-5);
  EXPECT_LE(max_error(mx::jvp(fused, {gate, up}, {up, gate}).second[0],
                      values(mx::jvp(plain, {gate, up}, {up, gate}).second[0])),
            1e-4);
  const auto slope = [](auto op) {
    return [op](const Arrays& in) {
      const auto first =
          mx::grad([&](const Arrays& v) { return mx::sum(op(v)[0]); }, std::vector<int>{0, 1})(in);
      return mx::sum(mx::multiply(first[0], mx::sin(first[1])));
    };
  };
  const auto second = mx::grad(slope(fused), std::vector<int>{0, 1})({gate, up});
  const auto second2 = mx::grad(slope(plain), std::vector<int>{0, 1})({gate, up});
  for (std::size_t i = 0; i < 2; ++i) {
    EXPECT_LE(max_error(second[i], values(second2[i])), 1e-4);
  }
}

TEST(Swiglu, RejectsWhatDoesNotFit) {
  EXPECT_THROW(swiglu(normal({2, 3}, 1), normal({2, 4}, 1)), std::invalid_argument);
  EXPECT_THROW(swiglu(normal({2, 3}, 1), normal({2, 3}, 1, 1, mx::bfloat16)),
               std::invalid_argument);
  EXPECT_THROW(swiglu(mx::array(1.0f), mx::array(1.0f)), std::invalid_argument);
}

}  // namespace
}  // namespace graft::mlx
