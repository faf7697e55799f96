#include "graft/llm/train/memory_estimate.h"

#include <algorithm>
#include <iterator>
#include <vector>

#include "graft/llm/evaluate/mean_loss.h"
#include "graft/mlx/graph_memory.h"
#include "mlx/backend/cpu/encoder.h"

namespace graft::llm {
namespace {

// Operations for which MLX allots memory before those ahead of them have run, even under
// bound_run_ahead: it waits only for calls in tens that are full, and an operation is two calls,
// its work and the release of what it read.
constexpr int kRunAhead = mx::cpu::DISPATCHES_PER_TASK / 2;
// What the bound leaves room for. With none to run ahead, MLX's thread would spin on a core that
// the kernels need.
constexpr int kLittle = 2;

Batch batch_of(const BatchShape& shape) {
  Batch batch;
  batch.batch_size = shape.batch_size;
  batch.length = shape.length;
  batch.num_targets = batch.num_inputs = shape.rows();
  batch.tokens.resize(static_cast<std::size_t>(shape.rows()));
  batch.targets = batch.tokens;
  return batch;
}

// Those that are within no other: the rest take less.
std::vector<Batch> largest(const std::set<BatchShape>& shapes) {
  std::vector<Batch> batches;
  for (const BatchShape& shape : shapes) {
    const bool within = std::ranges::any_of(shapes, [&](const BatchShape& other) {
      return shape != other && shape.batch_size <= other.batch_size && shape.length <= other.length;
    });
    if (!within) batches.push_back(batch_of(shape));
  }
  return batches;
}

}  // namespace

std::int64_t TrainingMemory::peak() const { return scratch + std::max(tensors + holes, saving); }

TrainingMemory training_memory(const Trainer& trainer, const RunShapes& shapes,
                               Activations activations) {
  const std::vector<LoraPair> pairs = trainer.pairs();
  std::int64_t pairs_bytes = 0;
  for (const LoraPair& pair : pairs) {
    pairs_bytes += static_cast<std::int64_t>(pair.a.nbytes() + pair.b.nbytes());
  }

  TrainingMemory memory;
  const auto consider = [&](const std::vector<mx::array>& graph) {
    const auto with_ahead = [&](int ahead) { return graft::mlx::graph_memory(graph, ahead); };
    const graft::mlx::GraphMemory need = with_ahead(kRunAhead);
    memory.tensors = std::max(memory.tensors, pairs_bytes + need.tensors);
    memory.bound = std::max(memory.bound, pairs_bytes + with_ahead(kLittle).tensors);
    memory.holes = std::max(memory.holes, (need.tensors - with_ahead(0).tensors) / 2);
    memory.scratch = std::max(memory.scratch, need.scratch);
  };
  for (const Batch& batch : largest(shapes.trained)) {
    consider(trainer.loss_and_gradients(batch, activations));
  }
  const ModelAdapter adapter{&trainer.layout(), pairs, std::nullopt, {}};
  for (const Batch& batch : largest(shapes.validated)) {
    consider({loss_sum(trainer.model(), &adapter, batch)});
  }
  // What is saved is copied out of the trainer, made an array or a file's tensor of, and a file.
  memory.saving = 3 * trainer.state_bytes();
  return memory;
}

}  // namespace graft::llm
