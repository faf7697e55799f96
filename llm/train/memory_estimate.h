#pragma once

#include <cstdint>
#include <set>

#include "graft/llm/data/batches.h"
#include "graft/llm/model/llama.h"
#include "graft/llm/train/trainer.h"

namespace graft::llm {

/// What training adds at its peak to what is resident before the first iteration, in bytes. Packed
/// weights, data, parameters and the optimizer's moments are there by then.
///
/// Nothing of it is computed from sizes: an iteration's graph is built, which evaluates nothing,
/// and says itself what its operations keep for backward, allot and ask for
/// (graft::mlx::graph_memory).
struct TrainingMemory {
  /// Of the iteration or validation that takes the most: the pairs as arrays, what layers keep for
  /// backward, the loss, gradients.
  std::int64_t tensors = 0;
  /// `tensors` with little run ahead: what bound_run_ahead may be given.
  std::int64_t bound = 0;
  /// What malloc keeps between them. A block that is allotted before others are free finds its
  /// place beyond them, and theirs fit few later ones: measured, about half of what is allotted
  /// ahead.
  std::int64_t holes = 0;
  std::int64_t scratch = 0;  ///< The block that the kernels' context keeps.
  std::int64_t saving = 0;   ///< Copies and files of a save, when no iteration's tensors are there.

  std::int64_t peak() const;
};

/// Sizes of batches that a run meets.
struct RunShapes {
  std::set<BatchShape> trained;
  std::set<BatchShape> validated;  ///< Without gradients.
};

/// Of a run of `trainer`, from what it holds now. `activations` may be another way than its own.
TrainingMemory training_memory(const Trainer& trainer, const RunShapes& shapes,
                               Activations activations);

}  // namespace graft::llm
