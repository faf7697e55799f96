// The estimate of training's memory: what MLX really allots, and the formula in the docs.

#include "graft/llm/train/memory_estimate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "graft/llm/process/allocator.h"
#include "graft/llm/train/trainer.h"
#include "graft/llm/weights/gguf_file.h"
#include "mlx/memory.h"
#include "tests/support/tiny_model.h"

namespace graft::llm {
namespace {

struct Case {
  int num_layers = 24;
  AdapterOptions adapter{.rank = 8};
  BatchShape batch{16, 64};
  Activations activations = Activations::kKept;
  mx::Dtype dtype = mx::float32;
  OptimizerKind optimizer = OptimizerKind::kAdamW;
  int accumulation_steps = 1;
};

// A run that is about to begin.
class TinyRun {
 public:
  explicit TinyRun(const Case& c)
      : model_(LlamaWeights(GgufFile::open(written(folder_, c))),
               {.dtype = c.dtype, .training = true}),
        layout_(model_.config(), c.adapter),
        trainer_(model_, layout_, layout_.initial_pairs(0),
                 {.schedule = {LrShape::kConstant, 1e-3, 0, 1},
                  .optimizer = {.kind = c.optimizer},
                  .accumulation_steps = c.accumulation_steps,
                  .activations = c.activations}) {}

  const Llama& model() const { return model_; }
  const AdapterLayout& layout() const { return layout_; }
  Trainer& trainer() { return trainer_; }

 private:
  static std::string written(const testing::TemporaryFolder& folder, const Case& c) {
    testing::TinyModel tiny;
    tiny.num_layers = c.num_layers;
    tiny.context_length = 512;
    tiny.write(folder.file("tiny.gguf"));
    return folder.file("tiny.gguf");
  }

  const testing::TemporaryFolder folder_;
  const Llama model_;
  const AdapterLayout layout_;
  Trainer trainer_;
};

TrainingMemory estimate(const Case& c) {
  return training_memory(TinyRun(c).trainer(), {.trained = {c.batch}, .validated = {}},
                         c.activations);
}

Batch batch_of(const BatchShape& shape) {
  Batch batch;
  batch.batch_size = shape.batch_size;
  batch.length = shape.length;
  batch.tokens.resize(static_cast<std::size_t>(shape.rows()));
  std::iota(batch.tokens.begin(), batch.tokens.end(), 0);
  for (std::int32_t& token : batch.tokens) token = token * 37 % 250 + 3;
  batch.targets = batch.tokens;
  batch.num_targets = batch.num_inputs = shape.rows();
  return batch;
}

// Activations of many layers outweigh all else. MLX counts what it allots, under the bound that
// training gives it.
TEST(MemoryEstimate, IsWhatTrainingAllots) {
  constexpr double kMostOff = 0.15;
  const std::size_t limit = mx::get_memory_limit();
  const std::vector<Projection> some{Projection::kK, Projection::kUp};
  for (Case c : {Case{}, Case{.adapter = {.rank = 2, .dropout = 0.1f}},
                 Case{.adapter = {.rank = 8, .layers = {20, 21, 22, 23}}},
                 Case{.adapter = {.rank = 8, .targets = some}}, Case{.dtype = mx::bfloat16},
                 Case{.accumulation_steps = 2}, Case{.batch = {2, 512}},
                 Case{.batch = {8, 256}, .dtype = mx::bfloat16, .accumulation_steps = 2}}) {
    for (const Activations activations : {Activations::kKept, Activations::kRecomputed}) {
      c.activations = activations;
      TinyRun run(c);
      const TrainingMemory memory =
          training_memory(run.trainer(), {.trained = {c.batch}, .validated = {}}, activations);
      const std::size_t before = mx::get_active_memory();
      bound_run_ahead(memory.bound);
      mx::reset_peak_memory();
      for (int i = 0; i < 2; ++i) run.trainer().step(batch_of(c.batch));
      const auto allotted = static_cast<double>(mx::get_peak_memory() - before);
      EXPECT_NEAR(static_cast<double>(memory.tensors) / allotted, 1.0, kMostOff)
          << c.batch.batch_size << " x " << c.batch.length << ", rank " << c.adapter.rank << ", "
          << c.adapter.layers.size() << " layers, " << c.adapter.targets.size()
          << " modules, recomputed " << (activations == Activations::kRecomputed);
    }
  }
  mx::set_memory_limit(limit);
}

// A forward pass keeps nothing, so that how far MLX runs ahead is much of it: at most as far as the
// estimate counts with.
TEST(MemoryEstimate, CoversWhatValidationAllots) {
  const std::size_t limit = mx::get_memory_limit();
  TinyRun run({.num_layers = 4});
  const BatchShape shape{64, 128};
  const TrainingMemory memory =
      training_memory(run.trainer(), {.trained = {}, .validated = {shape}}, Activations::kKept);
  const std::size_t before = mx::get_active_memory();
  bound_run_ahead(memory.bound);
  mx::reset_peak_memory();
  const Batch batch = batch_of(shape);
  run.trainer().evaluate({&batch, 1});
  const auto allotted = static_cast<double>(mx::get_peak_memory() - before);
  EXPECT_LT(allotted, 1.05 * static_cast<double>(memory.tensors));
  EXPECT_GT(allotted, 0.9 * static_cast<double>(memory.bound));
  mx::set_memory_limit(limit);
}

// The table in docs/memory.md.
TEST(MemoryEstimate, OneMoreLayerAddsWhatTheFormulaSays) {
  const TinyRun few({.num_layers = 5}), many({.num_layers = 6});
  const LlamaConfig& config = many.model().config();
  const std::int64_t parameters = many.layout().num_parameters() - few.layout().num_parameters();
  const auto added = [](Activations activations) {
    return estimate({.num_layers = 6, .batch = {8, 128}, .activations = activations}).tensors -
           estimate({.num_layers = 5, .batch = {8, 128}, .activations = activations}).tensors;
  };
  const std::int64_t rows = 8 * 128, hidden = config.hidden_size, heads = config.num_heads;
  const std::int64_t query = heads * config.head_dim, key = config.num_kv_heads * config.head_dim;
  const std::int64_t floats =
      4 * hidden + 2 * query + 2 * key + 3 * config.intermediate_size + 7 * 8 + heads + 2;
  EXPECT_EQ(added(Activations::kKept), 4 * (rows * floats + parameters));
  EXPECT_EQ(added(Activations::kRecomputed), 4 * (rows * hidden + parameters));
}

TEST(MemoryEstimate, GrowsWithWhatIsAskedFor) {
  const auto tensors = [](const Case& c) { return estimate(c).tensors; };
  const std::int64_t base = tensors({.batch = {4, 64}});
  EXPECT_GT(tensors({.batch = {8, 64}}), base + base / 2);
  EXPECT_GT(tensors({.batch = {4, 128}}), base + base / 2);
  EXPECT_GT(tensors({.adapter = {.rank = 16}, .batch = {4, 64}}), base);
  EXPECT_LT(tensors({.batch = {4, 64}, .activations = Activations::kRecomputed}), base * 2 / 3);
  const std::int64_t top = tensors({.adapter = {.layers = {23}}, .batch = {4, 64}});
  EXPECT_LT(top, tensors({.adapter = {.layers = {22, 23}}, .batch = {4, 64}}));
  EXPECT_LT(top, base);
  const std::vector<Projection> values{Projection::kQ, Projection::kV};
  EXPECT_LT(tensors({.adapter = {.targets = values}, .batch = {4, 64}}), base);
}

TEST(MemoryEstimate, IsOfTheLargestBatch) {
  TinyRun run({.num_layers = 2});
  const auto of = [&](const std::set<BatchShape>& trained, const std::set<BatchShape>& validated) {
    return training_memory(run.trainer(), {trained, validated}, Activations::kKept);
  };
  const TrainingMemory large = of({{4, 128}}, {});
  const TrainingMemory all = of({{4, 64}, {2, 128}, {4, 128}, {1, 8}}, {{4, 128}, {4, 8}});
  EXPECT_EQ(all.tensors, large.tensors);
  EXPECT_EQ(all.bound, large.bound);
  EXPECT_EQ(all.scratch, large.scratch);
  EXPECT_GT(of({{4, 8}}, {{16, 128}}).tensors, of({{4, 8}}, {}).tensors);
  EXPECT_LT(of({}, {{4, 128}}).tensors, large.tensors / 2);
  EXPECT_LT(of({}, {{4, 128}}).scratch, large.scratch);
  // Neither is within the other.
  const TrainingMemory both = of({{16, 8}, {1, 128}}, {});
  EXPECT_EQ(both.tensors, std::max(of({{16, 8}}, {}).tensors, of({{1, 128}}, {}).tensors));
  EXPECT_EQ(both.scratch, std::max(of({{16, 8}}, {}).scratch, of({{1, 128}}, {}).scratch));
}

TEST(MemoryEstimate, ASaveCopiesTheStateThrice) {
  for (const OptimizerKind kind : {OptimizerKind::kAdamW, OptimizerKind::kSgd}) {
    for (const int steps : {1, 2}) {
      const Case c{
          .num_layers = 2, .batch = {1, 8}, .optimizer = kind, .accumulation_steps = steps};
      TinyRun run(c);
      run.trainer().step(batch_of(c.batch));
      const TrainerState state = run.trainer().state();
      std::size_t numbers = state.optimizer.first_moment.size() +
                            state.optimizer.second_moment.size() + state.pending.mean.size();
      for (const LoraPair& pair : state.pairs) numbers += pair.a.size() + pair.b.size();
      const auto bytes = static_cast<std::int64_t>(numbers * sizeof(float));
      EXPECT_EQ(run.trainer().state_bytes(), bytes);
      EXPECT_EQ(estimate(c).saving, 3 * bytes);
    }
  }
}

TEST(MemoryEstimate, PackedWeightsAreKnownBeforeTheyAreRead) {
  for (const mx::Dtype dtype : {mx::float32, mx::bfloat16}) {
    const TinyRun run({.num_layers = 3, .dtype = dtype});
    const LlamaConfig& config = run.model().config();
    EXPECT_EQ(Llama::packed_bytes(config, {.dtype = dtype, .training = true}),
              run.model().packed_bytes());
    EXPECT_LT(Llama::packed_bytes(config, {.dtype = dtype}), run.model().packed_bytes());
  }
}

}  // namespace
}  // namespace graft::llm
