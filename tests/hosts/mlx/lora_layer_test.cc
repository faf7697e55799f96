#include "graft/mlx/lora_layer.h"

#include <stdexcept>
#include <string>

#include "graft/mlx/fusion.h"
#include "kernels_here.h"
#include "messages.h"
#include "truth.h"

namespace graft::mlx {
namespace {

using testing::Matrix;
using testing::matrix;
using testing::max_error;
using testing::message_of;
using testing::normal;
using testing::values;

LoRAOptions seeded(std::uint64_t seed = 1) {
  LoRAOptions options;
  options.key = mx::random::key(seed);
  return options;
}

Matrix truth(const LoRALayer& layer, const mx::array& w, const mx::array& x) {
  return matrix(x) * transpose(matrix(w)) +
         double{layer.scaling()} * ((matrix(x) * matrix(layer.a())) * matrix(layer.b()));
}

TEST(LoRALayer, StartsAsItsBase) {
  const auto w = normal({24, 40}, 1, 0.2f);
  const auto bias = normal({24}, 2);
  LoRALayer layer(w, bias);
  EXPECT_EQ(layer.rank(), 8);
  EXPECT_EQ(layer.scaling(), 2.0f);
  EXPECT_EQ(layer.dropout().p, 0.0f);
  EXPECT_TRUE(layer.training());
  EXPECT_EQ(layer.num_parameters(), 8 * (24 + 40));
  EXPECT_EQ(layer.a().shape(), (mx::Shape{40, 8}));
  EXPECT_EQ(layer.b().shape(), (mx::Shape{8, 24}));
  const auto x = normal({2, 3, 40}, 3);
  // B is zero: not nearly, exactly the base.
  EXPECT_EQ(values(layer.forward(x)), values(linear(x, layer.weight(), bias)));
}

TEST(LoRALayer, AIsUniformWithinOneOverRootIn) {
  const LoRALayer layer(normal({64, 400}, 1), std::nullopt, seeded());
  const auto a = values(layer.a());
  double sum = 0;
  double squares = 0;
  for (const double v : a) {
    EXPECT_LE(std::abs(v), 1 / std::sqrt(400.0));
    sum += v;
    squares += v * v;
  }
  const double n = static_cast<double>(a.size());
  const double variance = 1 / 400.0 / 3;  // of a uniform distribution in ±1/20
  EXPECT_NEAR(sum / n, 0.0, 5 * std::sqrt(variance / n));
  EXPECT_NEAR(squares / n, variance, 0.1 * variance);
  EXPECT_EQ(testing::largest(values(layer.b())), 0.0);
}

TEST(LoRALayer, KeyDecidesTheAdapter) {
  const auto w = normal({16, 16}, 1);
  const LoRALayer one(w, std::nullopt, seeded(5));
  const LoRALayer same(w, std::nullopt, seeded(5));
  const LoRALayer other(w, std::nullopt, seeded(6));
  EXPECT_EQ(values(one.a()), values(same.a()));
  EXPECT_NE(values(one.a()), values(other.a()));
  EXPECT_EQ(mx::array(one.dropout().seed).item<std::uint64_t>(),
            mx::array(same.dropout().seed).item<std::uint64_t>());
  EXPECT_NE(mx::array(one.dropout().seed).item<std::uint64_t>(),
            mx::array(other.dropout().seed).item<std::uint64_t>());
}

TEST(LoRALayer, ForwardIsBasePlusAdapterFusedUnderItsName) {
  const auto w = normal({24, 40}, 1, 0.2f);
  auto options = seeded();
  options.name = "layers.3.v_proj";
  LoRALayer layer(w, std::nullopt, options);
  layer.set_b(normal({8, 24}, 2, 0.1f));
  const auto x = normal({5, 40}, 3);
  reset_fusion_report();
  EXPECT_LE(max_error(layer.forward(x), truth(layer, w, x)), 1e-4);
  const auto report = fusion_report();
  ASSERT_EQ(report.size(), 1u);
  EXPECT_EQ(report[0].module, "layers.3.v_proj");
  EXPECT_TRUE(report[0].fused);
}

TEST(LoRALayer, MergeAndUnmerge) {
  const auto w = normal({24, 40}, 1, 0.2f);
  LoRALayer layer(w, normal({24}, 4), seeded());
  layer.set_b(normal({8, 24}, 2, 0.1f));
  const auto x = normal({5, 40}, 3);
  const auto before = values(layer.forward(x));
  const auto weight_before = values(unpack(layer.weight()));

  layer.merge();
  EXPECT_TRUE(layer.merged());
  reset_fusion_report();
  EXPECT_LE(max_error(layer.forward(x), before), 1e-4);
  ASSERT_EQ(fusion_report().size(), 1u);
  EXPECT_EQ(fusion_report()[0].op, "linear");
  EXPECT_THROW(layer.set_a(layer.a()), std::logic_error);
  EXPECT_THROW(layer.set_b(layer.b()), std::logic_error);
  layer.merge();  // nothing

  layer.unmerge();
  EXPECT_FALSE(layer.merged());
  EXPECT_EQ(values(unpack(layer.weight())), weight_before);
  EXPECT_EQ(values(unpack(layer.weight())), values(w));
  EXPECT_EQ(values(layer.forward(x)), before);
}

TEST(LoRALayer, DropoutOnlyWhileTraining) {
  auto options = seeded();
  options.dropout = 0.5f;
  const auto w = normal({24, 40}, 1, 0.2f);
  LoRALayer layer(w, std::nullopt, options);
  layer.set_b(normal({8, 24}, 2, 0.5f));
  const auto x = normal({5, 40}, 3);
  const auto first = values(layer.forward(x));
  const auto second = values(layer.forward(x));
  EXPECT_NE(first, second);
  EXPECT_EQ(mx::array(layer.dropout().offset).item<std::uint64_t>(), 2 * dropout_counters(x));

  layer.eval();
  EXPECT_LE(max_error(layer.forward(x), truth(layer, w, x)), 1e-4);
  EXPECT_EQ(values(layer.forward(x)), values(layer.forward(x)));
  EXPECT_EQ(mx::array(layer.dropout().offset).item<std::uint64_t>(), 2 * dropout_counters(x));

  layer.train();
  layer.set_dropout_state(layer.dropout().seed, mx::array(0));
  EXPECT_EQ(values(layer.forward(x)), first);
}

// The stateful forward inside a compiled function: the offset goes in and comes out.
TEST(LoRALayer, DropoutAdvancesUnderCompile) {
  auto options = seeded();
  options.dropout = 0.5f;
  LoRALayer layer(normal({24, 40}, 1, 0.2f), std::nullopt, options);
  layer.set_b(normal({8, 24}, 2, 0.5f));
  const auto x = normal({5, 40}, 3);
  const auto seed = layer.dropout().seed;
  std::vector<std::vector<double>> expected;
  for (int i = 0; i < 3; ++i) expected.push_back(values(layer.forward(x)));

  const auto step =
      mx::compile(std::function<std::vector<mx::array>(const std::vector<mx::array>&)>(
          [&](const std::vector<mx::array>& in) {
            layer.set_dropout_state(in[1], in[2]);
            const auto y = layer.forward(in[0]);
            return std::vector<mx::array>{y, layer.dropout().offset};
          }));
  auto offset = mx::array(std::uint64_t{0}, mx::uint64);
  for (int i = 0; i < 3; ++i) {
    const auto out = step({x, seed, offset});
    EXPECT_EQ(values(out[0]), expected[static_cast<std::size_t>(i)]) << "step " << i;
    offset = out[1];
  }
}

TEST(LoRALayer, FunctionalForwardTrains) {
  const auto w = normal({24, 40}, 1, 0.2f);
  const LoRALayer layer(w, std::nullopt, seeded());
  const auto x = normal({5, 40}, 3);
  const auto b = normal({8, 24}, 2, 0.1f);
  const auto loss = [&](const std::vector<mx::array>& in) {
    return mx::sum(mx::square(layer.forward(x, in[0], in[1])));
  };
  const auto gradients = mx::grad(loss, std::vector<int>{0, 1})({layer.a(), b});
  const Matrix X = matrix(x), A = matrix(layer.a()), B = matrix(b);
  const double s = layer.scaling();
  const Matrix dy = 2.0 * (X * transpose(matrix(w)) + s * ((X * A) * B));
  const Matrix da = s * (transpose(X) * (dy * transpose(B)));
  const Matrix db = s * (transpose(X * A) * dy);
  EXPECT_LE(max_error(gradients[0], da), 1e-5 * (1 + testing::largest(da.data)) * 5);
  EXPECT_LE(max_error(gradients[1], db), 1e-5 * (1 + testing::largest(db.data)) * 5);
}

TEST(LoRALayer, BFloat16Base) {
  const auto w = normal({24, 40}, 1, 0.2f, mx::bfloat16);
  auto options = seeded();
  options.dtype = mx::bfloat16;
  LoRALayer layer(w, std::nullopt, options);
  EXPECT_EQ(values(unpack(layer.weight())), values(w));
  layer.set_b(normal({8, 24}, 2, 0.1f));
  const auto x = normal({5, 40}, 3, 1.0f, mx::bfloat16);
  const auto y = layer.forward(x);
  EXPECT_EQ(y.dtype(), mx::bfloat16);
  EXPECT_LE(max_error(y, truth(layer, w, x)), 0.05);
  layer.merge();
  EXPECT_LE(max_error(layer.forward(x), truth(layer, w, x)), 0.05);
  layer.unmerge();
  EXPECT_EQ(values(unpack(layer.weight())), values(w));
}

TEST(LoRALayer, RejectsBadOptions) {
  const auto w = normal({12, 20}, 1);
  const auto with = [&](auto change) {
    return message_of([&] {
      LoRAOptions options;
      change(options);
      const LoRALayer layer(w, std::nullopt, options);
    });
  };
  EXPECT_EQ(with([](auto& o) { o.rank = 0; }), "[LoRALayer] rank: expected 1 to 12, got 0");
  EXPECT_EQ(with([](auto& o) { o.rank = 13; }), "[LoRALayer] rank: expected 1 to 12, got 13");
  EXPECT_EQ(with([](auto& o) { o.alpha = 0; }),
            "[LoRALayer] alpha: expected a finite number above 0, got 0.000000");
  EXPECT_EQ(with([](auto& o) { o.alpha = NAN; }),
            "[LoRALayer] alpha: expected a finite number above 0, got nan");
  EXPECT_EQ(with([](auto& o) { o.dropout = 1; }),
            "[LoRALayer] dropout: expected a chance in [0, 1), got 1.000000");
  EXPECT_EQ(with([](auto& o) { o.dropout = -0.5f; }),
            "[LoRALayer] dropout: expected a chance in [0, 1), got -0.500000");
  EXPECT_EQ(with([](auto& o) { o.dtype = mx::int32; }),
            testing::on_gpu() ? "[pack] dtype: expected float32, float16 or bfloat16"
                              : "[pack] dtype: expected float32 or bfloat16");
  EXPECT_EQ(message_of([&] { LoRALayer(w, normal({11}, 2)); }),
            "[LoRALayer] bias: expected (12), got (11)");
  EXPECT_EQ(message_of([&] { LoRALayer(normal({12}, 2)); }),
            "[pack] w: expected a matrix, got (12)");
  LoRALayer layer(w);
  EXPECT_EQ(message_of([&] {
              layer.set_a(normal({8, 20}, 1));
            }),
            "[LoRALayer] a: expected (20, 8), got (8, 20)");
}

TEST(LoRALayer, LargestRank) {
  auto options = seeded();
  options.rank = 256;
  const auto w = normal({300, 260}, 1, 0.05f);
  LoRALayer layer(w, std::nullopt, options);
  layer.set_b(normal({256, 300}, 2, 0.05f));
  const auto x = normal({5, 260}, 3);
  EXPECT_LE(max_error(layer.forward(x), truth(layer, w, x)), 1e-4);
  options.rank = 257;
  EXPECT_THROW(LoRALayer(normal({300, 300}, 1), std::nullopt, options), std::invalid_argument);
}

}  // namespace
}  // namespace graft::mlx
