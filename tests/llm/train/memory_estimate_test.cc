// The estimate of training's memory: what MLX really allots, the formula in the docs, its order.

#include "graft/llm/train/memory_estimate.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <numeric>
#include <optional>
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
  int accumulation_steps = 1;
};

class MemoryEstimate : public ::testing::Test {
 protected:
  // A model whose layers are wide beside nothing else, and many: what they keep outweighs the rest.
  void build(const Case& c) {
    trainer_.reset();
    layout_.reset();
    testing::TinyModel tiny;
    tiny.num_layers = c.num_layers;
    tiny.context_length = 512;
    tiny.write(folder_.file("tiny.gguf"));
    llama_.emplace(LlamaWeights(GgufFile::open(folder_.file("tiny.gguf"))),
                   LlamaOptions{.dtype = c.dtype, .training = true});
    layout_.emplace(llama_->config(), c.adapter);
    trainer_.emplace(*llama_, *layout_, layout_->initial_pairs(0),
                     TrainOptions{.schedule = {LrShape::kConstant, 1e-3, 0, 1},
                                  .accumulation_steps = c.accumulation_steps,
                                  .activations = c.activations});
  }

  TrainingMemory estimate(const Case& c) {
    build(c);
    return training_memory(*trainer_, {.trained = {c.batch}, .validated = {}}, c.activations);
  }

  static Batch batch_of(const BatchShape& shape) {
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

  const testing::TemporaryFolder folder_;
  std::optional<Llama> llama_;
  std::optional<AdapterLayout> layout_;
  std::optional<Trainer> trainer_;
};

TEST_F(MemoryEstimate, IsWhatTrainingAllots) {
  const std::size_t limit = mx::get_memory_limit();
  const std::vector<Projection> some{Projection::kK, Projection::kUp};
  for (Case c : {Case{}, Case{.adapter = {.rank = 2, .dropout = 0.1f}},
                 Case{.adapter = {.rank = 8, .layers = {20, 21, 22, 23}}},
                 Case{.adapter = {.rank = 8, .targets = some}}, Case{.dtype = mx::bfloat16},
                 Case{.accumulation_steps = 2}, Case{.batch = {2, 512}},
                 Case{.batch = {8, 256}, .dtype = mx::bfloat16, .accumulation_steps = 2}}) {
    for (const Activations activations : {Activations::kKept, Activations::kRecomputed}) {
      c.activations = activations;
      const TrainingMemory memory = estimate(c);
      const std::size_t before = mx::get_active_memory();
      bound_run_ahead(memory.bound);
      mx::reset_peak_memory();
      for (int i = 0; i < 4; ++i) trainer_->step(batch_of(c.batch));
      const auto allotted = static_cast<double>(mx::get_peak_memory() - before);
      SCOPED_TRACE(::testing::Message()
                   << c.batch.batch_size << " x " << c.batch.length << ", rank " << c.adapter.rank
                   << ", " << c.adapter.layers.size() << " layers, " << c.adapter.targets.size()
                   << " modules, recomputed " << (activations == Activations::kRecomputed));
      printf("%dx%d r%d kept %d: ratio %.3f bound %.3f\n", (int)c.batch.batch_size,
             (int)c.batch.length, c.adapter.rank, activations == Activations::kKept,
             memory.tensors / allotted, memory.bound / allotted);
      EXPECT_NEAR(static_cast<double>(memory.tensors) / allotted, 1.0, 0.15);
    }
  }
  mx::set_memory_limit(limit);
}

}  // namespace
}  // namespace graft::llm
