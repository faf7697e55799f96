#include "graft/mlx/rms_norm.h"

#include <mlx/fast.h>

#include <stdexcept>

#include "graft/mlx/fusion.h"
#include "kernels_here.h"
#include "truth.h"

namespace graft::mlx {
namespace {

using testing::expect_as_good_as;
using testing::largest;
using testing::max_error;
using testing::normal;
using testing::values;

using Arrays = std::vector<mx::array>;

constexpr float kEps = 1e-3f;
constexpr int kFeatures = 20;

struct Truth {
  std::vector<double> y;
  std::vector<double> ds;
  std::vector<double> dweight = std::vector<double>(kFeatures, 0.0);
};

// Value and gradients row by row, in double; dsum may be empty.
Truth truth(const std::vector<double>& s, const std::vector<double>& w,
            const std::vector<double>& dy, const std::vector<double>& dsum) {
  Truth t;
  for (std::size_t row = 0; row < s.size(); row += kFeatures) {
    double squares = 0;
    double projected = 0;
    for (std::size_t j = 0; j < kFeatures; ++j) {
      squares += s[row + j] * s[row + j];
      projected += dy[row + j] * w[j] * s[row + j];
    }
    const double rstd = 1 / std::sqrt(squares / kFeatures + double{kEps});
    for (std::size_t j = 0; j < kFeatures; ++j) {
      const std::size_t i = row + j;
      t.y.push_back(s[i] * rstd * w[j]);
      t.ds.push_back(rstd * (dy[i] * w[j] - s[i] * rstd * rstd * projected / kFeatures) +
                     (dsum.empty() ? 0 : dsum[i]));
      t.dweight[j] += dy[i] * s[i] * rstd;
    }
  }
  return t;
}

TEST(RmsNorm, ValueAndGradients) {
  for (const auto dtype : {mx::float32, mx::bfloat16}) {
    const auto x = normal({3, 5, kFeatures}, 1, 1.0f, dtype);
    const auto w = normal({kFeatures}, 2, 1.0f, dtype);
    const auto dy = normal({3, 5, kFeatures}, 3, 1.0f, dtype);
    reset_fusion_report();
    const auto [y, gradients] = mx::vjp(
        [](const Arrays& in) { return Arrays{rms_norm(in[0], in[1], kEps)}; }, {x, w}, {dy});
    const auto [y2, gradients2] =
        mx::vjp([](const Arrays& in) { return Arrays{mx::fast::rms_norm(in[0], in[1], kEps)}; },
                {x, w}, {dy});
    const auto t = truth(values(x), values(w), values(dy), {});
    expect_as_good_as(y[0], y2[0], t.y, kFeatures);
    expect_as_good_as(gradients[0], gradients2[0], t.ds, kFeatures);
    expect_as_good_as(gradients[1], gradients2[1], t.dweight, kFeatures);
    EXPECT_EQ(gradients[1].dtype(), dtype);
    testing::expect_fused();
  }
}

TEST(RmsNorm, WithResidual) {
  const auto x = normal({3, 5, kFeatures}, 1);
  const auto residual = normal({3, 5, kFeatures}, 2);
  const auto w = normal({kFeatures}, 3);
  const auto dy = normal({3, 5, kFeatures}, 4);
  const auto dsum = normal({3, 5, kFeatures}, 5);
  reset_fusion_report();
  const auto [outputs, gradients] = mx::vjp(
      [](const Arrays& in) {
        const auto [y, sum] = add_rms_norm(in[0], in[1], in[2], kEps);
        return Arrays{y, sum};
      },
      {x, residual, w}, {dy, dsum});
  auto s = values(x);
  const auto r = values(residual);
  for (std::size_t i = 0; i < s.size(); ++i) s[i] += r[i];
  const auto t = truth(s, values(w), values(dy), values(dsum));
  EXPECT_LE(max_error(outputs[0], t.y), 1e-5);
  EXPECT_LE(max_error(outputs[1], s), 1e-6);
  EXPECT_LE(max_error(gradients[0], t.ds), 1e-5 * (1 + largest(t.ds)));
  EXPECT_EQ(values(gradients[0]), values(gradients[1]));
  EXPECT_LE(max_error(gradients[2], t.dweight), 1e-5 * (1 + largest(t.dweight)));
  testing::expect_fused();
}

TEST(RmsNorm, StridedInputs) {
  const auto w = normal({kFeatures}, 1);
  const auto check = [&](const mx::array& x) {
    EXPECT_LE(max_error(rms_norm(x, w, kEps), values(mx::fast::rms_norm(x, w, kEps))), 1e-5);
  };
  check(mx::transpose(normal({kFeatures, 6}, 2)));
  check(mx::slice(normal({6, 2 * kFeatures}, 3), {0, 7}, {6, 7 + kFeatures}));
  check(mx::transpose(normal({4, 3, kFeatures}, 4), {1, 0, 2}));
}

TEST(RmsNorm, Transforms) {
  const auto x = normal({3, 5, kFeatures}, 1);
  const auto residual = normal({3, 5, kFeatures}, 2);
  const auto w = normal({kFeatures}, 3);
  const auto fused = [&](const Arrays& in) {
    const auto [y, sum] = add_rms_norm(in[0], in[1], w, kEps);
    return Arrays{mx::multiply(y, mx::sin(sum))};
  };
  const auto plain = [&](const Arrays& in) {
    const auto sum = mx::add(in[0], in[1]);
    return Arrays{mx::multiply(mx::fast::rms_norm(sum, w, kEps), mx::sin(sum))};
  };
  const auto near = [](const mx::array& a, const mx::array& b) {
    const auto t = values(b);
    EXPECT_LE(max_error(a, t), 1e-4 * (1 + largest(t)));
  };
  near(mx::vmap(fused, {0, 0}, {0})({x, residual})[0],
       mx::vmap(plain, {0, 0}, {0})({x, residual})[0]);
  near(mx::vmap(fused, {0, -1}, {0})({x, mx::take(residual, 0, 0)})[0],
       mx::vmap(plain, {0, -1}, {0})({x, mx::take(residual, 0, 0)})[0]);
  near(mx::jvp(fused, {x, residual}, {residual, x}).second[0],
       mx::jvp(plain, {x, residual}, {residual, x}).second[0]);
  const auto slope = [](auto op) {
    return [op](const Arrays& in) {
      const auto first =
          mx::grad([&](const Arrays& v) { return mx::sum(op(v)[0]); }, std::vector<int>{0, 1})(in);
      return mx::sum(mx::multiply(first[0], mx::cos(first[1])));
    };
  };
  const auto second = mx::grad(slope(fused), std::vector<int>{0, 1})({x, residual});
  const auto second2 = mx::grad(slope(plain), std::vector<int>{0, 1})({x, residual});
  for (std::size_t i = 0; i < 2; ++i) near(second[i], second2[i]);
  near(mx::compile(std::function<Arrays(const Arrays&)>(fused))({x, residual})[0],
       plain({x, residual})[0]);
}

// The CPU has no kernel for it. Either way y is as good as one rounding of it.
TEST(RmsNorm, Float16) {
  const auto x = normal({3, kFeatures}, 1, 1.0f, mx::float16);
  const auto w = normal({kFeatures}, 2, 1.0f, mx::float16);
  reset_fusion_report();
  const auto wide = [](const mx::array& v) { return mx::astype(v, mx::float32); };
  testing::expect_rounded(rms_norm(x, w, kEps), values(mx::fast::rms_norm(wide(x), wide(w), kEps)),
                          kFeatures);
  ASSERT_EQ(fusion_report().size(), 1u);
  EXPECT_EQ(fusion_report()[0].fused, testing::on_gpu());
}

TEST(RmsNorm, RejectsWhatDoesNotFit) {
  EXPECT_THROW(rms_norm(normal({3, 4}, 1), normal({5}, 1)), std::invalid_argument);
  EXPECT_THROW(rms_norm(mx::array(1.0f), normal({1}, 1)), std::invalid_argument);
  EXPECT_THROW(add_rms_norm(normal({3, 4}, 1), normal({4, 4}, 1), normal({4}, 1)),
               std::invalid_argument);
  EXPECT_THROW(rms_norm(normal({3, 4}, 1), normal({4}, 1), -1.0f), std::invalid_argument);
}

}  // namespace
}  // namespace graft::mlx
