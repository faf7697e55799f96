// The estimate of training's memory: its formula, its order, and what MLX really allots.

#include "graft/llm/train/memory_estimate.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <numeric>
#include <vector>

#include "graft/llm/process/allocator.h"
#include "graft/llm/train/trainer.h"
#include "graft/llm/weights/gguf_file.h"
#include "mlx/memory.h"
#include "tests/support/tiny_model.h"

namespace graft::llm {
namespace {

LlamaConfig config_of(int num_layers) {
  LlamaConfig config;
  config.num_layers = num_layers;
  config.hidden_size = 96;
  config.intermediate_size = 256;
  config.num_heads = 6;
  config.num_kv_heads = 2;
  config.head_dim = 16;
  config.vocab_size = 500;
  return config;
}

std::int64_t bytes(const LlamaConfig& config, const AdapterOptions& options, BatchShape batch,
                   Activations activations = Activations::kKept) {
  return step_bytes(config, AdapterLayout(config, options), batch, activations);
}

TEST(MemoryEstimate, OneMoreLayerAddsWhatTheFormulaSays) {
  const std::int64_t rows = 8 * 128, rank = 4;
  const AdapterOptions options{.rank = static_cast<int>(rank)};
  const LlamaConfig few = config_of(5), many = config_of(6);
  const std::int64_t parameters =
      AdapterLayout(many, options).num_parameters() - AdapterLayout(few, options).num_parameters();
  const auto difference = [&](Activations activations) {
    return bytes(many, options, {8, 128}, activations) - bytes(few, options, {8, 128}, activations);
  };
  const std::int64_t floats = 4 * 96 + 2 * 96 + 2 * 32 + 3 * 256 + rank * 7 + 6 + 2;
  EXPECT_EQ(difference(Activations::kKept), 4 * (rows * floats + parameters));
  EXPECT_EQ(difference(Activations::kRecomputed), 4 * (rows * 96 + parameters));
}

TEST(MemoryEstimate, GrowsWithWhatIsAskedFor) {
  const LlamaConfig config = config_of(4);
  const AdapterOptions plain;
  const std::int64_t base = bytes(config, plain, {4, 64});
  EXPECT_GT(bytes(config, plain, {8, 64}), base + base / 2);
  EXPECT_GT(bytes(config, plain, {4, 128}), base + base / 2);
  EXPECT_GT(bytes(config, {.rank = 32}, {4, 64}), base);
  EXPECT_LT(bytes(config, plain, {4, 64}, Activations::kRecomputed), base * 2 / 3);

  const std::int64_t top = bytes(config, {.layers = {3}}, {4, 64});
  EXPECT_LT(top, bytes(config, {.layers = {2, 3}}, {4, 64}));
  EXPECT_LT(bytes(config, {.layers = {2, 3}}, {4, 64}), base);
  const std::vector<Projection> values{Projection::kQ, Projection::kV};
  EXPECT_LT(bytes(config, {.targets = values}, {4, 64}), base);

  const AdapterLayout layout(config, plain);
  EXPECT_LT(loss_bytes(config, layout, {4, 64}), base / 2);
  const auto scratch = [&](bool gradients, int threads) {
    return scratch_bytes(config, layout, {4, 64}, gradients, threads);
  };
  EXPECT_GT(scratch(true, 16), scratch(true, 2));
  EXPECT_LT(scratch(false, 2), scratch(true, 2));
  EXPECT_EQ(packed_weight_bytes(config, mx::float32, true),
            2 * packed_weight_bytes(config, mx::bfloat16, true));
}

// Activations of many layers outweigh all else, and MLX counts what it allots.
TEST(MemoryEstimate, IsWhatMlxAllots) {
  const testing::TemporaryFolder folder;
  testing::TinyModel tiny;
  tiny.num_layers = 24;
  tiny.write(folder.file("tiny.gguf"));
  const Llama llama(LlamaWeights(GgufFile::open(folder.file("tiny.gguf"))), {.training = true});
  Batch batch;
  batch.batch_size = 16;
  batch.length = 64;
  batch.tokens.resize(16 * 64);
  std::iota(batch.tokens.begin(), batch.tokens.end(), 0);
  for (std::int32_t& token : batch.tokens) token = token * 37 % 250 + 3;
  batch.targets = batch.tokens;
  batch.num_targets = batch.num_inputs = 16 * 64;

  const std::size_t limit = mx::get_memory_limit();
  const std::vector<Projection> some{Projection::kK, Projection::kUp};
  for (const AdapterOptions& options :
       {AdapterOptions{.rank = 8}, AdapterOptions{.rank = 2, .dropout = 0.1f},
        AdapterOptions{.rank = 8, .layers = {20, 21, 22, 23}},
        AdapterOptions{.rank = 8, .targets = some}}) {
    for (const Activations activations : {Activations::kKept, Activations::kRecomputed}) {
      const AdapterLayout layout(llama.config(), options);
      Trainer trainer(llama, layout, layout.initial_pairs(0),
                      {.schedule = {LrShape::kConstant, 1e-3, 0, 1}, .activations = activations});
      const std::size_t before = mx::get_active_memory();
      bound_run_ahead(step_bytes(llama.config(), layout, {16, 64}, activations, /*ahead=*/0));
      mx::reset_peak_memory();
      trainer.step(batch);
      const auto allotted = static_cast<double>(mx::get_peak_memory() - before);
      const auto ahead = [&](int operations) {
        return static_cast<double>(
            step_bytes(llama.config(), layout, {16, 64}, activations, operations));
      };
      SCOPED_TRACE(::testing::Message()
                   << "rank " << options.rank << ", " << options.targets.size()
                   << " modules, recomputed " << (activations == Activations::kRecomputed));
      // Timing decides how far MLX runs ahead: from nothing to all that the estimate counts with.
      EXPECT_GT(allotted, 0.95 * ahead(0));
      EXPECT_LT(allotted, 1.1 * ahead(kRunAhead));
    }
  }
  mx::set_memory_limit(limit);
}

}  // namespace
}  // namespace graft::llm
