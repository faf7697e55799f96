// What a lazy graph says that it takes: graphs that can be counted by hand, the scratch that a
// context then has, and what MLX allots.

#include "graft/mlx/graph_memory.h"

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <cstdint>
#include <vector>

#include "graft/attention.h"
#include "graft/linear_cross_entropy.h"
#include "graft/mlx/attention.h"
#include "graft/mlx/linear_cross_entropy.h"
#include "graft/mlx/lora.h"
#include "graft/mlx/lora_siblings.h"
#include "graft/mlx/swiglu.h"
#include "graft/mlx/weight.h"
#include "kernels_here.h"

namespace graft::mlx {
namespace {

namespace mx = ::mlx::core;
using Arrays = std::vector<mx::array>;

mx::array evaluated(const mx::Shape& shape) {
  mx::array x = mx::random::normal(shape, mx::random::key(1));
  x.eval();
  return x;
}

TEST(GraphMemory, OfWhatIsEvaluatedIsNothing) {
  const GraphMemory none = graph_memory({evaluated({8, 8})});
  EXPECT_EQ(none.tensors, 0);
  EXPECT_EQ(none.scratch, 0);
}

TEST(GraphMemory, IsFreeAgainAfterTheLastReader) {
  constexpr std::int64_t kBytes = 16 * 32 * sizeof(float);
  const mx::array x = evaluated({16, 32});
  const mx::array a = mx::exp(x), b = mx::sin(a), c = mx::cos(b);
  EXPECT_EQ(graph_memory({c}).tensors, 2 * kBytes);
  EXPECT_EQ(graph_memory({c}, 1).tensors, 3 * kBytes);
  EXPECT_EQ(graph_memory({a, c}).tensors, 3 * kBytes);
  // A second reader keeps it.
  EXPECT_EQ(graph_memory({mx::add(c, a)}).tensors, 3 * kBytes);
  // Nothing has been evaluated.
  EXPECT_EQ(c.status(), mx::array::unscheduled);
}

TEST(GraphMemory, ViewsTakeNone) {
  constexpr std::int64_t kBytes = 16 * 32 * sizeof(float);
  const mx::array a = mx::exp(evaluated({16, 32}));
  const mx::array view = mx::transpose(mx::reshape(a, {32, 16}));
  EXPECT_EQ(graph_memory({view}).tensors, kBytes);
  // They keep what they show.
  EXPECT_EQ(graph_memory({mx::sin(view), view}).tensors, 2 * kBytes);
}

TEST(GraphMemory, OfAllResultsOfAnOperation) {
  const mx::array x = evaluated({16, 32});
  const mx::array a = evaluated({32, 4}), b = evaluated({4, 24});
  const mx::array y = lora_linear(x, pack(evaluated({24, 32})), std::nullopt, a, b, 1.0f);
  EXPECT_EQ(graph_memory({y}).tensors, 16 * (24 + 4) * 4);  // and h
}

TEST(GraphMemory, OfGradients) {
  constexpr std::int64_t kBytes = 16 * 32 * sizeof(float);
  const Arrays in{evaluated({16, 32}), evaluated({16, 32})};
  const auto gated = [](const Arrays& x) { return Arrays{swiglu(x[0], x[1])}; };
  const auto [y, gradients] = mx::vjp(gated, in, {evaluated({16, 32})});
  EXPECT_EQ(graph_memory({y[0], gradients[0], gradients[1]}).tensors, 3 * kBytes);
  // They need the operands, not y.
  EXPECT_EQ(graph_memory({gradients[0], gradients[1]}).tensors, 2 * kBytes);
}

// x is read again for gradients of an adapter. Without one nothing reads it, and it is not kept.
TEST(GraphMemory, SiblingsKeepXForAdaptersAlone) {
  constexpr int kM = 64, kK = 48, kN = 16;
  const std::vector<LoraSibling> plain{{.weight = pack(evaluated({kN, kK}))},
                                       {.weight = pack(evaluated({kN, kK}))}};
  const auto tensors = [&](bool adapter) {
    const auto ys = [&](const Arrays& in) {
      std::vector<LoraSibling> layers = plain;
      if (adapter) layers[0].a = in[1], layers[0].b = in[2];
      return lora_siblings(in[0], layers);
    };
    // x is computed, and so has memory of its own.
    const Arrays in{mx::negative(evaluated({kM, kK})), evaluated({kK, 1}), evaluated({1, kN})};
    const Arrays dy{evaluated({kM, kN}), evaluated({kM, kN})};
    auto [all, gradients] = mx::vjp(ys, in, dy);
    all.insert(all.end(), gradients.begin(), gradients.begin() + (adapter ? 3 : 1));
    return graph_memory(all).tensors;
  };
  const std::int64_t ys = 2 * kM * kN * 4, x = kM * kK * 4, h = kM * 4, pair = (kK + kN) * 4;
  EXPECT_EQ(tensors(false), ys + x);                // x, and then its gradient
  EXPECT_EQ(tensors(true), ys + x + h + x + pair);  // both
}

std::int64_t rounded(std::int64_t bytes) { return (bytes + 4095) / 4096 * 4096; }

TEST(GraphMemory, ScratchIsWhatAContextThenHolds) {
  if (testing::on_cuda()) GTEST_SKIP() << "a context of CUDA holds nothing between calls";
  constexpr int kBatch = 2, kLength = 70, kHeads = 4, kHeadDim = 16;
  const mx::array q = evaluated({kBatch, kLength, kHeads, kHeadDim});
  const AttentionOptions options{.scale = 0.25f, .causal = true, .rotary = {}};
  Context context;
  std::vector<float> values(q.size()), out(q.size());
  AttentionForward params;
  params.q = params.k = params.v =
      ConstTensorView(values.data(), DType::kFloat32, {kBatch, kLength, kHeads, kHeadDim});
  params.y = TensorView(out.data(), DType::kFloat32, {kBatch, kLength, kHeads, kHeadDim});
  params.options = options;
  attention_forward(context, params);
  EXPECT_EQ(rounded(graph_memory({attention(q, q, q, options)}).scratch),
            static_cast<std::int64_t>(context.scratch_bytes()));
}

TEST(GraphMemory, ScratchOfTheLossIsMoreWithItsGradient) {
  if (testing::on_cuda()) GTEST_SKIP() << "a context of CUDA holds nothing between calls";
  constexpr int kRows = 150, kIn = 64, kVocabulary = 700;
  const mx::array x = evaluated({kRows, kIn}), w = evaluated({kVocabulary, kIn});
  const Weight packed = pack(w);
  const mx::array targets = mx::zeros({kRows}, mx::int32);
  const auto loss = [&](const Arrays& in) {
    return Arrays{mx::sum(linear_cross_entropy(in[0], packed, targets))};
  };
  const auto [value, gradients] = mx::value_and_grad(loss, std::vector<int>{0})({x});
  const std::int64_t said = graph_memory({value[0], gradients[0]}).scratch;

  Context context;
  std::vector<float> rows(kRows * kIn), dx(kRows * kIn), losses(kRows);
  const std::vector<std::int32_t> zeros(kRows);
  LinearCrossEntropy params;
  params.x = ConstTensorView(rows.data(), DType::kFloat32, {kRows, kIn});
  params.weight = packed;
  params.targets = ConstTensorView(zeros.data(), DType::kInt32, {kRows});
  params.losses = TensorView(losses.data(), DType::kFloat32, {kRows});
  linear_cross_entropy(context, params);
  EXPECT_EQ(rounded(graph_memory({loss({x})[0]}).scratch),
            static_cast<std::int64_t>(context.scratch_bytes()));
  params.dx = TensorView(dx.data(), DType::kFloat32, {kRows, kIn});
  linear_cross_entropy(context, params);
  EXPECT_EQ(rounded(said), static_cast<std::int64_t>(context.scratch_bytes()));
}

}  // namespace
}  // namespace graft::mlx
