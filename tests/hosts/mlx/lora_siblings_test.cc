#include "graft/mlx/lora_siblings.h"

#include <cstddef>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "graft/mlx/fusion.h"
#include "graft/mlx/linear.h"
#include "kernels_here.h"
#include "truth.h"

namespace graft::mlx {
namespace {

using testing::expect_as_good_as;
using testing::expect_fused;
using testing::Matrix;
using testing::matrix;
using testing::max_error;
using testing::normal;

using Arrays = std::vector<mx::array>;

// q with an adapter and a bias, k with another rank, v without an adapter. Gradients are asked for
// in x and the pairs: {x, a_q, b_q, a_k, b_k}.
struct Layers {
  static constexpr int kM = 37, kK = 40;
  std::vector<LoraSibling> list;
  std::vector<mx::array> weights;
  Arrays variables;
  Arrays dy;

  explicit Layers(float p = 0.0f, mx::Dtype dtype = mx::float32) {
    variables.push_back(normal({kM, kK}, 1, 1.0f, dtype));
    const std::vector<std::tuple<std::string, int, int>> shapes{
        {"q", 64, 8}, {"k", 20, 3}, {"v", 33, 0}};
    std::uint32_t seed = 10;
    for (const auto& [module, n, rank] : shapes) {
      weights.push_back(normal({n, kK}, seed, 0.2f, dtype));
      dy.push_back(normal({kM, n}, seed + 1, 1.0f, dtype));
      LoraSibling layer{.weight = pack(weights.back(), dtype)};
      layer.module = module;
      if (module != "k") layer.bias = normal({n}, seed + 2, 1.0f, dtype);
      if (rank > 0) {
        layer.a = normal({kK, rank}, seed + 3, 0.2f);
        layer.b = normal({rank, n}, seed + 4, 0.2f);
        layer.scaling = 0.5f + static_cast<float>(rank) / 4;
        layer.dropout = {p, mx::array(std::uint64_t{7}, mx::uint64),
                         mx::array(std::uint64_t{1000} * seed, mx::uint64)};
        variables.insert(variables.end(), {*layer.a, *layer.b});
      }
      list.push_back(layer);
      seed += 10;
    }
  }

  std::vector<LoraSibling> with(const Arrays& in) const {
    std::vector<LoraSibling> layers = list;
    layers[0].a = in[1], layers[0].b = in[2];
    layers[1].a = in[3], layers[1].b = in[4];
    return layers;
  }
  Arrays together(const Arrays& in) const { return lora_siblings(in[0], with(in)); }
  Arrays one_by_one(const Arrays& in) const {
    Arrays ys;
    for (const LoraSibling& l : with(in)) {
      ys.push_back(l.a ? lora_linear(in[0], l.weight, l.bias, *l.a, *l.b, l.scaling, l.dropout)
                       : linear(in[0], l.weight, l.bias));
    }
    return ys;
  }
  // From MLX's ops, without dropout.
  Arrays composed(const Arrays& in) const {
    Arrays ys;
    const auto layers = with(in);
    for (std::size_t i = 0; i < layers.size(); ++i) {
      const LoraSibling& l = layers[i];
      mx::array y = mx::matmul(in[0], mx::transpose(weights[i]));
      if (l.a) {
        const auto h = mx::matmul(in[0], mx::astype(*l.a, in[0].dtype()));
        const auto delta = mx::matmul(h, mx::astype(*l.b, in[0].dtype()));
        y = mx::add(y, mx::multiply(delta, mx::array(l.scaling, in[0].dtype())));
      }
      ys.push_back(l.bias ? mx::add(y, *l.bias) : y);
    }
    return ys;
  }
  template <class Function>
  Arrays gradients(const Function& f) const {
    return mx::vjp(f, variables, dy).second;
  }
};

// Values and gradients in double: y of each layer, then the variables' gradients.
std::vector<Matrix> truth_of(const Layers& layers) {
  const Matrix x = matrix(layers.variables[0]);
  std::vector<Matrix> ys, pairs;
  Matrix dx(x.rows, x.cols);
  for (std::size_t i = 0; i < layers.list.size(); ++i) {
    const LoraSibling& l = layers.list[i];
    const Matrix w = matrix(layers.weights[i]), dy = matrix(layers.dy[i]);
    Matrix y = x * transpose(w);
    dx = dx + dy * w;
    if (l.a) {
      const Matrix a = matrix(*l.a), b = matrix(*l.b);
      const Matrix g = static_cast<double>(l.scaling) * (dy * transpose(b));
      y = y + static_cast<double>(l.scaling) * ((x * a) * b);
      dx = dx + g * transpose(a);
      pairs.push_back(transpose(x) * g);
      pairs.push_back(static_cast<double>(l.scaling) * (transpose(x * a) * dy));
    }
    if (l.bias) {
      const std::vector<double> bias = testing::values(*l.bias);
      for (std::size_t r = 0; r < y.rows; ++r) {
        for (std::size_t c = 0; c < y.cols; ++c) y.at(r, c) += bias[c];
      }
    }
    ys.push_back(y);
  }
  ys.push_back(dx);
  ys.insert(ys.end(), pairs.begin(), pairs.end());
  return ys;
}

TEST(LoraSiblings, ValuesAndGradients) {
  for (const mx::Dtype dtype : {mx::float32, mx::bfloat16}) {
    const Layers layers(0.0f, dtype);
    reset_fusion_report();
    const auto together = [&](const Arrays& in) { return layers.together(in); };
    const auto composed = [&](const Arrays& in) { return layers.composed(in); };
    auto [ys, gradients] = mx::vjp(together, layers.variables, layers.dy);
    auto [plain_ys, plain_gradients] = mx::vjp(composed, layers.variables, layers.dy);
    ys.insert(ys.end(), gradients.begin(), gradients.end());
    plain_ys.insert(plain_ys.end(), plain_gradients.begin(), plain_gradients.end());
    const auto truth = truth_of(layers);
    ASSERT_EQ(ys.size(), truth.size());
    for (std::size_t i = 0; i < ys.size(); ++i) {
      SCOPED_TRACE(i);
      EXPECT_EQ(ys[i].dtype(), plain_ys[i].dtype());
      expect_as_good_as(ys[i], plain_ys[i], truth[i], 128);
    }
    expect_fused();
    // Each layer is counted as its own call would be.
    std::set<std::tuple<std::string, std::string, std::uint64_t>> counted;
    for (const auto& record : fusion_report()) {
      counted.insert({record.op, record.module, record.runs});
    }
    EXPECT_EQ(counted, (std::set<std::tuple<std::string, std::string, std::uint64_t>>{
                           {"lora_linear", "q", 1}, {"lora_linear", "k", 1}, {"linear", "v", 1}}));
  }
}

TEST(LoraSiblings, DropoutIsThatOfTheirOwnCalls) {
  const Layers layers(0.4f);
  const auto together =
      mx::vjp([&](const Arrays& in) { return layers.together(in); }, layers.variables, layers.dy);
  const auto alone =
      mx::vjp([&](const Arrays& in) { return layers.one_by_one(in); }, layers.variables, layers.dy);
  const auto plain =
      mx::vjp([&](const Arrays& in) { return layers.composed(in); }, layers.variables, layers.dy);
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_LE(max_error(together.first[i], testing::values(alone.first[i])), 1e-5);
  }
  for (std::size_t i = 0; i < layers.variables.size(); ++i) {
    const auto expected = testing::values(alone.second[i]);
    EXPECT_LE(max_error(together.second[i], expected), 2e-5 * testing::largest(expected)) << i;
    EXPECT_GT(max_error(plain.second[i], expected), 1e-2 * testing::largest(expected)) << i;
  }
}

TEST(LoraSiblings, AnySubsetOfGradients) {
  const Layers layers(0.2f);
  const auto all = layers.gradients([&](const Arrays& in) { return layers.together(in); });
  for (const std::vector<int>& argnums :
       std::vector<std::vector<int>>{{0}, {1}, {2, 4}, {0, 3}, {4}}) {
    const auto loss = [&](const Arrays& in) {
      mx::array sum = mx::array(0.0f);
      const auto ys = layers.together(in);
      for (std::size_t i = 0; i < ys.size(); ++i) {
        sum = mx::add(sum, mx::sum(mx::multiply(ys[i], layers.dy[i])));
      }
      return sum;
    };
    const auto some = mx::grad(loss, argnums)(layers.variables);
    for (std::size_t i = 0; i < argnums.size(); ++i) {
      const auto expected = testing::values(all[static_cast<std::size_t>(argnums[i])]);
      EXPECT_LE(max_error(some[i], expected), 1e-5 * testing::largest(expected));
    }
  }
}

TEST(LoraSiblings, GradientOfAGradient) {
  const Layers layers;
  const auto loss = [&](const Arrays& in) {
    mx::array sum = mx::array(0.0f);
    for (const mx::array& y : layers.together(in)) sum = mx::add(sum, mx::sum(mx::square(y)));
    return mx::multiply(sum, mx::array(1e-3f));
  };
  const auto slope = [&](const Arrays& in) {
    return mx::sum(mx::square(mx::grad(loss, std::vector<int>{3})(in)[0]));
  };
  const auto second = mx::grad(slope, std::vector<int>{4})(layers.variables)[0];
  const auto expected = testing::finite_differences(slope, layers.variables, 4);
  EXPECT_LE(max_error(second, expected), 1e-2 * testing::largest(expected));
}

TEST(LoraSiblings, CompiledAndVectorized) {
  const Layers layers;
  const auto together = [&](const Arrays& in) { return layers.together(in); };
  const auto expected = layers.together(layers.variables);
  const auto compiled = mx::compile(together)(layers.variables);
  Arrays batch = layers.variables;
  batch[0] = mx::stack({batch[0], mx::multiply(batch[0], mx::array(2.0f))});
  const auto stacked = mx::vmap(together, {0, -1, -1, -1, -1})(batch);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const auto truth = testing::values(expected[i]);
    EXPECT_LE(max_error(compiled[i], truth), 0.0);
    EXPECT_LE(max_error(mx::take(stacked[i], mx::array(0), 0), truth),
              1e-5 * testing::largest(truth));
  }
}

TEST(LoraSiblings, WeightsPackedForForwardOnlySaySoBackward) {
  if (testing::on_gpu()) GTEST_SKIP() << "Metal's weights serve both directions";
  Layers layers;
  for (std::size_t i = 0; i < 3; ++i) {
    layers.list[i].weight = pack(layers.weights[i], mx::float32, false);
  }
  reset_fusion_report();
  const auto gradients = layers.gradients([&](const Arrays& in) { return layers.together(in); });
  const auto truth = truth_of(layers);
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    EXPECT_LE(max_error(gradients[i], truth[3 + i]), 1e-4);
  }
  for (const auto& record : fusion_report()) {
    if (record.pass != Pass::kBackward) continue;
    EXPECT_FALSE(record.fused);
    EXPECT_EQ(record.reason, "the weight is packed for forward only");
  }
}

TEST(LoraSiblings, OneLayerAndNone) {
  const Layers layers;
  EXPECT_TRUE(lora_siblings(layers.variables[0], {}).empty());
  const auto alone = lora_siblings(layers.variables[0], {layers.list[1]});
  const auto all = layers.together(layers.variables);
  EXPECT_LE(max_error(alone[0], testing::values(all[1])), 1e-5);
}

TEST(LoraSiblings, RefusesWhatDoesNotFit) {
  const Layers layers;
  const auto refuses = [&](const auto& change) {
    std::vector<LoraSibling> list = layers.list;
    change(list[1]);
    EXPECT_THROW(lora_siblings(layers.variables[0], list), std::invalid_argument);
  };
  refuses([](LoraSibling& l) { l.weight = {}; });
  refuses([](LoraSibling& l) { l.weight = pack(normal({4, 5}, 1)); });
  refuses([](LoraSibling& l) { l.bias = normal({3}, 1); });
  refuses([](LoraSibling& l) { l.b.reset(); });
  refuses([](LoraSibling& l) { l.a = normal({41, 3}, 1); });
  refuses([](LoraSibling& l) { l.b = normal({4, 20}, 1); });
  refuses([](LoraSibling& l) { l.scaling = NAN; });
  refuses([](LoraSibling& l) { l.dropout.p = 1.0f; });
  refuses([](LoraSibling& l) { l.dropout.seed = mx::array({1, 2}); });
}

}  // namespace
}  // namespace graft::mlx
