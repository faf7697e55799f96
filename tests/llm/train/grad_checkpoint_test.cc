// That activations which are computed again give the same loss and the same gradients, bit for bit.

#include <gtest/gtest.h>

#include <cstdint>
#include <numeric>
#include <optional>
#include <vector>

#include "graft/llm/model/llama.h"
#include "graft/llm/train/trainer.h"
#include "graft/llm/weights/gguf_file.h"
#include "mlx/ops.h"
#include "mlx/random.h"
#include "mlx/transforms.h"
#include "tests/support/tiny_model.h"

namespace graft::llm {
namespace {

using testing::TemporaryFolder;
using testing::TinyModel;

constexpr int kBatch = 3, kLength = 40;

class GradCheckpointTest : public ::testing::Test {
 protected:
  Llama load(mx::Dtype dtype) const {
    TinyModel tiny;
    tiny.num_layers = 4;
    const std::string path = folder_.file("tiny.gguf");
    tiny.write(path);
    return Llama(LlamaWeights(GgufFile::open(path)), {.dtype = dtype, .training = true});
  }

  static std::vector<std::int32_t> tokens(int seed) {
    std::vector<std::int32_t> out(kBatch * kLength);
    for (std::size_t i = 0; i < out.size(); ++i) {
      out[i] =
          static_cast<std::int32_t>((i * 37 + i * i * 11 + static_cast<std::size_t>(seed)) % 250) +
          3;
    }
    return out;
  }

  static mx::array rows(const std::vector<std::int32_t>& values) {
    return mx::array(values.data(), {kBatch, kLength}, mx::int32);
  }

  /// The loss, then the gradient of every matrix of the adapter.
  static std::vector<mx::array> loss_and_gradients(const Llama& llama, const AdapterLayout& layout,
                                                   Activations activations) {
    std::vector<mx::array> flat;
    mx::random::KeySequence keys(4);
    for (const LoraPair& pair : layout.initial_pairs(3)) {
      flat.push_back(pair.a);
      flat.push_back(mx::random::normal(pair.b.shape(), mx::float32, 0.0f, 0.05f, keys.next()));
    }
    const auto loss = [&](const std::vector<mx::array>& parameters) {
      ModelAdapter adapter{&layout, {}, std::nullopt, {}};
      for (std::size_t i = 0; i < parameters.size(); i += 2) {
        adapter.pairs.push_back({parameters[i], parameters[i + 1]});
      }
      if (layout.options().dropout > 0) {
        adapter.dropout_seed = mx::array(std::uint64_t{9}, mx::uint64);
        for (std::uint64_t i = 0; i < adapter.pairs.size(); ++i) {
          adapter.dropout_offsets.push_back(mx::array(i << 32, mx::uint64));
        }
      }
      return std::vector<mx::array>{
          llama.loss_sum(rows(tokens(0)), rows(tokens(5)), &adapter, activations)};
    };
    std::vector<int> all(flat.size());
    std::iota(all.begin(), all.end(), 0);
    auto [values, gradients] = mx::value_and_grad(loss, all)(flat);
    values.insert(values.end(), gradients.begin(), gradients.end());
    mx::eval(values);
    return values;
  }

  static void expect_same(const Llama& llama, const AdapterOptions& options) {
    const AdapterLayout layout(llama.config(), options);
    const auto kept = loss_and_gradients(llama, layout, Activations::kKept);
    const auto recomputed = loss_and_gradients(llama, layout, Activations::kRecomputed);
    ASSERT_EQ(kept.size(), 1 + 2 * layout.modules().size());
    ASSERT_EQ(recomputed.size(), kept.size());
    for (std::size_t i = 0; i < kept.size(); ++i) {
      EXPECT_GT(mx::max(mx::abs(kept[i])).item<float>(), 0.0f) << i;
      EXPECT_TRUE(mx::array_equal(kept[i], recomputed[i]).item<bool>())
          << (i == 0 ? "loss" : layout.modules()[(i - 1) / 2].path());
    }
  }

  const TemporaryFolder folder_;
};

TEST_F(GradCheckpointTest, GivesTheSameBits) {
  for (const mx::Dtype dtype : {mx::float32, mx::bfloat16}) {
    const Llama llama = load(dtype);
    for (const float dropout : {0.0f, 0.3f}) {
      expect_same(llama, {.rank = 8, .dropout = dropout});
    }
  }
}

TEST_F(GradCheckpointTest, GivesTheSameBitsWithFewModules) {
  const Llama llama = load(mx::float32);
  AdapterOptions options{.rank = 3, .dropout = 0.1f};
  options.targets = {Projection::kV, Projection::kUp};
  expect_same(llama, options);
  options.layers = {1, 3};  // gradients go through layer 2, which has no pairs, and not into 0
  expect_same(llama, options);
}

TEST_F(GradCheckpointTest, TrainsTheSame) {
  const Llama llama = load(mx::float32);
  const AdapterLayout layout(llama.config(), {.rank = 4, .dropout = 0.2f});
  Batch batch;
  batch.batch_size = kBatch;
  batch.length = kLength;
  batch.tokens = tokens(0);
  batch.targets = tokens(5);
  batch.num_targets = batch.num_inputs = kBatch * kLength;
  const auto train = [&](Activations activations) {
    Trainer trainer(llama, layout, layout.initial_pairs(0),
                    {.schedule = {LrShape::kConstant, 2e-2, 0, 10}, .activations = activations});
    std::vector<double> losses;
    for (int i = 0; i < 10; ++i) losses.push_back(trainer.step(batch).loss);
    return losses;
  };
  const std::vector<double> losses = train(Activations::kKept);
  EXPECT_LT(losses.back(), losses.front());
  EXPECT_EQ(train(Activations::kRecomputed), losses);
}

}  // namespace
}  // namespace graft::llm
