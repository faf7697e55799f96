#pragma once

#include <cstdint>

#include "graft/llm/data/batches.h"
#include "graft/llm/model/adapter_layout.h"
#include "graft/llm/model/llama.h"
#include "graft/llm/model/llama_config.h"

namespace graft::llm {

// What training adds at its peak to what is resident before the first iteration: weights, data,
// parameters and the optimizer's moments are there by then, and are measured rather than computed.
// All in bytes; activations are float32 whatever the weights are.
//
// With M = batch size · length rows, H hidden, I intermediate, Q = heads · d and K = kv_heads · d
// features, r the rank and P parameters, an iteration holds at its fullest:
//
//   each layer        4·M·(4·H + 2·Q + 2·K + 3·I + r · adapted projections + heads + 2): what the
//   with gradients    backward kernels read, if all seven projections are adapted. It is less for
//                     fewer: the input of a projection is kept for the gradient of its A alone
//   recomputed        4·M·H for each layer, and the line above for one at a time
//   the widest place  gradients of gate, up and their product while all layers' activations are
//   of backward       held; operations whose memory MLX allots before those ahead of them have run
//   the adapter       4·P for the pairs as MLX arrays, 4·P for their gradients
//   scratch           one block, the most that any kernel asks for: logits of a chunk of rows, or
//                     attention's keys, values and their gradients by query head

/// Operations whose memory MLX allots before those ahead of them have run, if bound_run_ahead keeps
/// it to what is needed without any: those that it has not yet handed to its stream. It hands on
/// ten calls at a time, and most operations are one.
inline constexpr int kRunAhead = 8;

/// Tensors of an iteration on a batch: activations, the pairs and gradients.
std::int64_t step_bytes(const LlamaConfig& config, const AdapterLayout& layout,
                        const BatchShape& batch, Activations activations, int ahead = kRunAhead);

/// Tensors of the loss alone, as in validation.
std::int64_t loss_bytes(const LlamaConfig& config, const AdapterLayout& layout,
                        const BatchShape& batch, int ahead = kRunAhead);

/// The scratch block after an iteration, or after a loss alone. It stays until the end.
std::int64_t scratch_bytes(const LlamaConfig& config, const AdapterLayout& layout,
                           const BatchShape& batch, bool gradients, int threads);

/// Saving the adapter and a checkpoint: copies of the parameters and of the optimizer's vectors, as
/// long as those (two moments, gradients that wait for an update), and the files.
std::int64_t save_bytes(const AdapterLayout& layout, int optimizer_vectors);

/// The base weights as training holds them: packed in `dtype`, for forward and backward.
std::int64_t packed_weight_bytes(const LlamaConfig& config, mx::Dtype dtype, bool training);

}  // namespace graft::llm
