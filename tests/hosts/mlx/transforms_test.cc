#include <cstdint>

#include "graft/mlx/fusion.h"
#include "graft/mlx/lora.h"
#include "graft/mlx/swiglu.h"
#include "kernels_here.h"
#include "truth.h"

namespace graft::mlx {
namespace {

using testing::finite_differences;
using testing::largest;
using testing::max_error;
using testing::normal;
using testing::values;

using Arrays = std::vector<mx::array>;

// x, a, b of a small lora_linear whose weight is `weight()`.
Arrays operands() { return {normal({3, 5}, 1), normal({5, 2}, 2), normal({2, 4}, 3)}; }
mx::array plain_weight() { return normal({4, 5}, 4); }

mx::array plain_lora(const Arrays& in) {
  return mx::add(mx::matmul(in[0], mx::transpose(plain_weight())),
                 mx::multiply(mx::matmul(mx::matmul(in[0], in[1]), in[2]), mx::array(1.5f)));
}

mx::array fused_lora(const Arrays& in) {
  static const Weight weight = pack(plain_weight());
  return lora_linear(in[0], weight, std::nullopt, in[1], in[2], 1.5f);
}

// A scalar that is not linear in y, so that a wrong cotangent shows.
mx::array fused_loss(const Arrays& in) { return mx::sum(mx::sin(fused_lora(in))); }
mx::array plain_loss(const Arrays& in) { return mx::sum(mx::sin(plain_lora(in))); }

void expect_equal(const mx::array& a, const mx::array& b, double tolerance = 2e-5) {
  EXPECT_EQ(a.shape(), b.shape());
  const auto truth = values(b);
  EXPECT_LE(max_error(a, truth), tolerance * (1 + largest(truth)));
}

TEST(Transforms, GradAgainstFiniteDifferences) {
  const auto inputs = operands();
  const auto gradients = mx::grad(fused_loss, std::vector<int>{0, 1, 2})(inputs);
  for (std::size_t i = 0; i < 3; ++i) {
    const auto truth = finite_differences(fused_loss, inputs, i);
    EXPECT_LE(max_error(gradients[i], truth), 2e-3 * (1 + largest(truth))) << "operand " << i;
  }
}

TEST(Transforms, ValueAndGradOfAnySubset) {
  const auto inputs = operands();
  const std::vector<std::vector<int>> subsets{{0}, {1}, {2}, {0, 2}, {1, 2}, {0, 1, 2}};
  for (const auto& subset : subsets) {
    const auto [value, gradients] = mx::value_and_grad(fused_loss, subset)(inputs);
    const auto [value2, gradients2] = mx::value_and_grad(plain_loss, subset)(inputs);
    expect_equal(value, value2);
    ASSERT_EQ(gradients.size(), subset.size());
    for (std::size_t i = 0; i < subset.size(); ++i) expect_equal(gradients[i], gradients2[i]);
  }
}

TEST(Transforms, OneOperandUsedTwice) {
  const auto twice = [](auto op) {
    return [op](const Arrays& in) {
      const auto y = op(in);
      const auto again = op({mx::concatenate({y, mx::slice(y, {0, 0}, {3, 1})}, 1), in[1], in[2]});
      return mx::sum(mx::square(again));
    };
  };
  const auto inputs = operands();
  const auto fused = mx::grad(twice(fused_lora), std::vector<int>{0, 1, 2})(inputs);
  const auto plain = mx::grad(twice(plain_lora), std::vector<int>{0, 1, 2})(inputs);
  for (std::size_t i = 0; i < 3; ++i) expect_equal(fused[i], plain[i]);
}

TEST(Transforms, GradientOfAGradient) {
  const auto slope = [](auto loss) {
    return [loss](const Arrays& in) {
      const auto first = mx::grad(loss, std::vector<int>{0, 1, 2})(in);
      return mx::add(mx::sum(mx::square(first[0])),
                     mx::add(mx::sum(mx::sin(first[1])), mx::sum(mx::square(first[2]))));
    };
  };
  const auto inputs = operands();
  const std::function<mx::array(const Arrays&)> fused = fused_loss;
  const std::function<mx::array(const Arrays&)> plain = plain_loss;
  const auto second = mx::grad(slope(fused), std::vector<int>{0, 1, 2})(inputs);
  const auto second2 = mx::grad(slope(plain), std::vector<int>{0, 1, 2})(inputs);
  for (std::size_t i = 0; i < 3; ++i) expect_equal(second[i], second2[i], 1e-4);
}

TEST(Transforms, Jvp) {
  const auto f = [](auto op) { return [op](const Arrays& in) { return Arrays{op(in)}; }; };
  const auto inputs = operands();
  const Arrays tangents{normal({3, 5}, 11), normal({5, 2}, 12), normal({2, 4}, 13)};
  const auto [y, dy] = mx::jvp(f(fused_lora), inputs, tangents);
  const auto [y2, dy2] = mx::jvp(f(plain_lora), inputs, tangents);
  expect_equal(y[0], y2[0]);
  expect_equal(dy[0], dy2[0]);
}

TEST(Transforms, Compile) {
  const auto step = [](auto loss) {
    return [loss](const Arrays& in) {
      auto [value, gradients] = mx::value_and_grad(loss, std::vector<int>{0, 1, 2})(in);
      gradients.push_back(value);
      return gradients;
    };
  };
  const std::function<mx::array(const Arrays&)> fused = fused_loss;
  const auto compiled = mx::compile(step(fused));
  reset_fusion_report();
  for (std::uint32_t run = 0; run < 3; ++run) {
    const Arrays inputs{normal({3, 5}, 100 + run), normal({5, 2}, 200 + run),
                        normal({2, 4}, 300 + run)};
    const auto out = compiled(inputs);
    const auto truth = step(plain_loss)(inputs);
    for (std::size_t i = 0; i < out.size(); ++i) expect_equal(out[i], truth[i]);
  }
  // Counted when it runs, so that a compiled step shows every time.
  for (const auto& record : fusion_report()) {
    EXPECT_TRUE(record.fused) << record.op << ": " << record.reason;
    EXPECT_EQ(record.runs, 3u) << record.op << " " << name_of(record.pass);
  }
  EXPECT_EQ(fusion_report().size(), 2u);
}

// Two equal calls in one compiled function are merged by MLX; different ones must not be.
TEST(Transforms, CompileMergesOnlyEqualCalls) {
  const auto f = [](const Arrays& in) {
    static const Weight one = pack(plain_weight());
    static const Weight other = pack(mx::multiply(plain_weight(), mx::array(2.0f)));
    const auto call = [&](const Weight& w, float scaling) {
      return lora_linear(in[0], w, std::nullopt, in[1], in[2], scaling);
    };
    return Arrays{mx::add(call(one, 1.0f), call(one, 1.0f)), call(one, 2.0f), call(other, 1.0f)};
  };
  const auto inputs = operands();
  const auto expected = f(inputs);
  const auto compiled = mx::compile(std::function<Arrays(const Arrays&)>(f))(inputs);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(values(compiled[i]), values(expected[i])) << i;
  }
}

TEST(Transforms, VmapOverXIsMoreRows) {
  const auto batch = normal({6, 3, 5}, 21);
  const auto inputs = operands();
  reset_fusion_report();
  for (const int axis : {0, 1}) {
    const auto arranged = axis == 0 ? batch : mx::contiguous(mx::moveaxis(batch, 0, 1));
    const auto mapped = mx::vmap(
        [&](const mx::array& x) {
          return fused_lora({x, inputs[1], inputs[2]});
        },
        axis)(arranged);
    expect_equal(mapped, plain_lora({batch, inputs[1], inputs[2]}));
  }
  testing::expect_fused();
}

TEST(Transforms, VmapOverAdaptersIsComposed) {
  const auto x = normal({6, 3, 5}, 31);
  const auto a = normal({6, 5, 2}, 32);
  const auto b = normal({6, 2, 4}, 33);
  const auto f = [](const Arrays& in) { return Arrays{fused_lora(in)}; };
  reset_fusion_report();
  const auto y = mx::vmap(f, {0, 0, 0}, {0})({x, a, b})[0];
  expect_equal(y, plain_lora({x, a, b}));
  ASSERT_EQ(fusion_report().size(), 1u);
  EXPECT_FALSE(fusion_report()[0].fused);
  EXPECT_NE(fusion_report()[0].reason.find("vmap"), std::string::npos);
}

// Per-example gradients: vmap of a gradient, in x alone and in the adapter.
TEST(Transforms, VmapOfAGradient) {
  const auto batch = normal({4, 3, 5}, 41);
  const auto inputs = operands();
  for (const int argnum : {0, 1, 2}) {
    const auto per_example = [&](auto loss) {
      return [&, loss](const mx::array& x) {
        const std::function<mx::array(const Arrays&)> scalar = loss;
        return mx::grad(scalar, argnum)({x, inputs[1], inputs[2]})[0];
      };
    };
    expect_equal(mx::vmap(per_example(fused_loss))(batch),
                 mx::vmap(per_example(plain_loss))(batch));
  }
}

TEST(Transforms, GradientThroughVmap) {
  const auto batch = normal({4, 3, 5}, 51);
  const auto inputs = operands();
  const auto mapped = [&](auto op) {
    return [&, op](const Arrays& in) {
      return mx::sum(mx::sin(mx::vmap([&](const mx::array& x) {
        return op(Arrays{x, in[0], in[1]});
      })(batch)));
    };
  };
  const auto fused = mx::grad(mapped(fused_lora), std::vector<int>{0, 1})({inputs[1], inputs[2]});
  const auto plain = mx::grad(mapped(plain_lora), std::vector<int>{0, 1})({inputs[1], inputs[2]});
  for (std::size_t i = 0; i < 2; ++i) expect_equal(fused[i], plain[i]);
}

TEST(Transforms, Checkpoint) {
  const auto f = [](const Arrays& in) { return Arrays{fused_lora(in)}; };
  const auto loss = [&](const Arrays& in) { return mx::sum(mx::sin(mx::checkpoint(f)(in)[0])); };
  const auto inputs = operands();
  const auto gradients = mx::grad(loss, std::vector<int>{0, 1, 2})(inputs);
  const auto plain = mx::grad(plain_loss, std::vector<int>{0, 1, 2})(inputs);
  for (std::size_t i = 0; i < 3; ++i) expect_equal(gradients[i], plain[i]);
}

}  // namespace
}  // namespace graft::mlx
