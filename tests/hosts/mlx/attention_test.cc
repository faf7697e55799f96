#include "graft/mlx/attention.h"

#include <mlx/fast.h>

#include <cstdint>
#include <stdexcept>

#include "graft/mlx/fusion.h"
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

// (B, T, heads, d) in double, one element at a time.
struct Heads {
  int tokens;
  int heads;
  int d;
  std::vector<double> data;

  explicit Heads(const mx::array& x)
      : tokens(x.shape(1)), heads(x.shape(2)), d(x.shape(3)), data(values(x)) {}
  double& at(int b, int t, int h, int i) {
    return data[static_cast<std::size_t>(((b * tokens + t) * heads + h) * d + i)];
  }

  // Each pair (i, i + d/2), or (2i, 2i + 1), turned by position·theta^(−2i/d).
  void turn(int batch, const Rotary& rotary, std::int64_t position) {
    for (int b = 0; b < batch; ++b) {
      for (int t = 0; t < tokens; ++t) {
        for (int h = 0; h < heads; ++h) {
          for (int i = 0; i < d / 2; ++i) {
            const double angle = static_cast<double>(position + t) / double{rotary.scaling_factor} *
                                 std::pow(double{rotary.theta}, -2.0 * i / d);
            double& first = at(b, t, h, rotary.interleaved ? 2 * i : i);
            double& second = at(b, t, h, rotary.interleaved ? 2 * i + 1 : i + d / 2);
            const double x = first;
            const double y = second;
            first = x * std::cos(angle) - y * std::sin(angle);
            second = x * std::sin(angle) + y * std::cos(angle);
          }
        }
      }
    }
  }
};

std::vector<double> truth(const mx::array& q_array, const mx::array& k_array,
                          const mx::array& v_array, const AttentionOptions& options) {
  Heads q(q_array), k(k_array), v(v_array), y(q_array);
  const int batch = q_array.shape(0);
  const int past = k.tokens - q.tokens;
  if (options.rotary.enabled) {
    q.turn(batch, options.rotary, options.rotary.position + past);
    k.turn(batch, options.rotary, options.rotary.position);
  }
  for (int b = 0; b < batch; ++b) {
    for (int t = 0; t < q.tokens; ++t) {
      for (int h = 0; h < q.heads; ++h) {
        const int group = h / (q.heads / k.heads);
        const int seen = options.causal ? past + t + 1 : k.tokens;
        std::vector<double> weights;
        double sum = 0;
        for (int j = 0; j < seen; ++j) {
          double score = 0;
          for (int i = 0; i < q.d; ++i) score += q.at(b, t, h, i) * k.at(b, j, group, i);
          weights.push_back(std::exp(double{options.scale} * score));
          sum += weights.back();
        }
        for (int i = 0; i < q.d; ++i) {
          double value = 0;
          for (int j = 0; j < seen; ++j) {
            value += weights[static_cast<std::size_t>(j)] / sum * v.at(b, j, group, i);
          }
          y.at(b, t, h, i) = value;
        }
      }
    }
  }
  return y.data;
}

struct Case {
  int queries = 6;
  int keys = 6;
  AttentionOptions options;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const bool causal : {true, false}) {
    for (const int turn : {0, 1, 2}) {
      for (const int queries : {6, 1}) {
        Case c;
        c.queries = queries;
        c.options.scale = 0.35f;
        c.options.causal = causal;
        c.options.rotary.enabled = turn > 0;
        c.options.rotary.interleaved = turn == 2;
        c.options.rotary.theta = 100.0f;
        c.options.rotary.position = 3;
        c.options.rotary.scaling_factor = turn == 2 ? 3.0f : 1.0f;
        all.push_back(c);
      }
    }
  }
  return all;
}

Arrays operands(const Case& c, mx::Dtype dtype = mx::float32) {
  return {normal({2, c.queries, 4, 8}, 1, 1.0f, dtype), normal({2, c.keys, 2, 8}, 2, 1.0f, dtype),
          normal({2, c.keys, 2, 8}, 3, 1.0f, dtype)};
}

TEST(Attention, FusedAndComposedAgainstTruth) {
  for (const auto& c : cases()) {
    const auto in = operands(c);
    const auto expected = truth(in[0], in[1], in[2], c.options);
    reset_fusion_report();
    EXPECT_LE(max_error(attention(in[0], in[1], in[2], c.options), expected), 1e-5);
    testing::expect_fused();
    set_fused_enabled(false);
    EXPECT_LE(max_error(attention(in[0], in[1], in[2], c.options), expected), 1e-5);
    set_fused_enabled(true);
  }
}

TEST(Attention, BFloat16) {
  const Case c;
  const auto in = operands(c, mx::bfloat16);
  const auto y = attention(in[0], in[1], in[2], c.options);
  EXPECT_EQ(y.dtype(), mx::bfloat16);
  EXPECT_LE(max_error(y, truth(in[0], in[1], in[2], c.options)), 0.03);
}

TEST(Attention, GradientsAgainstFiniteDifferences) {
  Case c = cases()[2];
  const auto in = operands(c);
  const auto loss = [&](const Arrays& v) {
    return mx::sum(mx::sin(attention(v[0], v[1], v[2], c.options)));
  };
  reset_fusion_report();
  const auto gradients = mx::grad(loss, std::vector<int>{0, 1, 2})(in);
  mx::eval(gradients);
  testing::expect_fused();
  for (std::size_t i = 0; i < 3; ++i) {
    const auto expected = finite_differences(loss, in, i);
    EXPECT_LE(max_error(gradients[i], expected), 3e-3 * (1 + largest(expected))) << i;
  }
}

TEST(Attention, GradientsAsComposed) {
  for (const auto& c : cases()) {
    const auto in = operands(c);
    const auto loss = [&](const Arrays& v) {
      return mx::sum(mx::sin(attention(v[0], v[1], v[2], c.options)));
    };
    for (const auto& subset : std::vector<std::vector<int>>{{0, 1, 2}, {1}, {0, 2}}) {
      const auto fused = mx::grad(loss, subset)(in);
      mx::eval(fused);
      set_fused_enabled(false);
      const auto composed = mx::grad(loss, subset)(in);
      set_fused_enabled(true);
      for (std::size_t i = 0; i < subset.size(); ++i) {
        const auto expected = values(composed[i]);
        EXPECT_LE(max_error(fused[i], expected), 2e-5 * (1 + largest(expected)));
      }
    }
  }
}

// Tokens after heads in memory, and a last axis with gaps.
TEST(Attention, StridedInputs) {
  const AttentionOptions options;
  const auto k = normal({2, 6, 2, 8}, 2);
  const auto v = normal({2, 6, 2, 8}, 3);
  for (const auto& q :
       {mx::swapaxes(normal({2, 4, 6, 8}, 1), 1, 2), mx::swapaxes(normal({2, 6, 8, 4}, 1), 2, 3)}) {
    EXPECT_LE(max_error(attention(q, k, v, options), truth(q, k, v, options)), 1e-5);
  }
}

TEST(Attention, Transforms) {
  const Case c = cases()[2];
  const auto fused = [&](const Arrays& v) {
    return Arrays{attention(v[0], v[1], v[2], c.options)};
  };
  const auto in = operands(c);
  Arrays batched;
  for (const auto& x : in) batched.push_back(mx::stack({x, mx::sin(x), mx::cos(x)}, 1));
  reset_fusion_report();
  const auto mapped = mx::vmap(fused, {1, 1, 1}, {1})(batched)[0];
  const auto second = mx::take(mapped, 1, 1);
  EXPECT_LE(max_error(second, truth(mx::sin(in[0]), mx::sin(in[1]), mx::sin(in[2]), c.options)),
            1e-5);
  testing::expect_fused();

  const auto one_k = mx::vmap(fused, {1, -1, -1}, {1})({batched[0], in[1], in[2]})[0];
  EXPECT_LE(max_error(mx::take(one_k, 2, 1), truth(mx::cos(in[0]), in[1], in[2], c.options)), 1e-5);

  const auto loss = [&](const Arrays& v) { return mx::sum(mx::sin(fused(v)[0])); };
  const auto slopes = [&](const Arrays& v) { return mx::grad(loss, std::vector<int>{0, 1, 2})(v); };
  const auto per_example = mx::vmap(slopes, {1, 1, 1}, {1, 1, 1})(batched);
  const auto alone = slopes({mx::sin(in[0]), mx::sin(in[1]), mx::sin(in[2])});
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_LE(max_error(mx::take(per_example[i], 1, 1), values(alone[i])), 1e-5);
  }

  const Arrays tangents{normal(in[0].shape(), 11), normal(in[1].shape(), 12),
                        normal(in[2].shape(), 13)};
  const auto slope = [&](const Arrays& v) {
    return mx::sum(mx::multiply(slopes(v)[1], tangents[1]));
  };
  const auto fused_tangent = mx::jvp(fused, in, tangents).second[0];
  const auto fused_second = mx::grad(slope, std::vector<int>{0, 2})(in);
  mx::eval(fused_tangent, fused_second[0], fused_second[1]);
  set_fused_enabled(false);
  EXPECT_LE(max_error(fused_tangent, values(mx::jvp(fused, in, tangents).second[0])), 1e-4);
  const auto composed_second = mx::grad(slope, std::vector<int>{0, 2})(in);
  for (std::size_t i = 0; i < 2; ++i) {
    EXPECT_LE(max_error(fused_second[i], values(composed_second[i])), 1e-4);
  }
  set_fused_enabled(true);
}

TEST(Attention, RejectsWhatDoesNotFit) {
  const auto q = normal({2, 6, 4, 8}, 1);
  const auto k = normal({2, 6, 2, 8}, 2);
  EXPECT_THROW(attention(mx::take(q, 0, 0), k, k), std::invalid_argument);
  EXPECT_THROW(attention(q, normal({2, 6, 3, 8}, 2), normal({2, 6, 3, 8}, 2)),
               std::invalid_argument);
  EXPECT_THROW(attention(q, normal({2, 5, 2, 8}, 2), normal({2, 5, 2, 8}, 2)),
               std::invalid_argument);
  EXPECT_THROW(attention(q, k, normal({2, 7, 2, 8}, 2)), std::invalid_argument);
  EXPECT_THROW(attention(q, k, mx::astype(k, mx::bfloat16)), std::invalid_argument);
  AttentionOptions options;
  options.scale = 0.0f;
  EXPECT_THROW(attention(q, k, k, options), std::invalid_argument);
}

}  // namespace
}  // namespace graft::mlx
