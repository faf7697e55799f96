#pragma once

#include <mlx/mlx.h>

#include <cstdint>
#include <optional>

#include "graft/export.h"
#include "graft/mlx/linear.h"

namespace graft::mlx {

/// Inverted dropout on the adapter's input; graft/lora.h says how the mask is made.
///
/// Seed and offset are arrays, evaluated with the graph: pass them into a compiled function as
/// inputs, or every step repeats one mask. Give every module, step and microbatch counters of its
/// own: `dropout_counters(x)` says how many a call takes.
struct GRAFT_EXPORT DropoutState {
  float p =
      0.0f;  ///< Chance that an element is dropped, in [0, 1), taken to the nearest 1 / 65536.
  mx::array seed = mx::array(std::uint64_t{0}, mx::uint64);    ///< One integer, taken as uint64.
  mx::array offset = mx::array(std::uint64_t{0}, mx::uint64);  ///< One integer, taken as uint64.
};

/// Counters that a call with this x uses: [offset, offset + dropout_counters(x)).
GRAFT_EXPORT std::uint64_t dropout_counters(const mx::array& x);

/// y = scaling·(x·A)·B, the adapter's contribution alone: x (..., in_features) float32 or bfloat16,
/// A (in_features, rank), B (rank, out_features), y (..., out_features) in x's dtype.
///
/// Any strides; PEFT's lora_A.weight and lora_B.weight go in as mx::transpose(...), without a copy.
/// One fused kernel where `graft::supports` says so, otherwise composed MLX ops; `fusion_report`
/// tells. Differentiable in x, a and b, any number of times. Throws std::invalid_argument if shapes
/// do not fit.
GRAFT_EXPORT mx::array lora_forward_fused(const mx::array& x, const mx::array& a,
                                          const mx::array& b, float scaling,
                                          mx::StreamOrDevice s = {});

/// y = x·Wᵀ + bias + scaling·(drop(x)·A)·B in one pass over y; W is frozen.
///
/// Shapes as in lora_forward_fused, W (out_features, in_features), bias (out_features).
GRAFT_EXPORT mx::array lora_linear(const mx::array& x, const Weight& w,
                                   const std::optional<mx::array>& bias, const mx::array& a,
                                   const mx::array& b, float scaling,
                                   const DropoutState& dropout = {}, mx::StreamOrDevice s = {});

/// The same with a plain weight, packed anew each time. Its gradient is composed from MLX ops.
GRAFT_EXPORT mx::array lora_linear(const mx::array& x, const mx::array& w,
                                   const std::optional<mx::array>& bias, const mx::array& a,
                                   const mx::array& b, float scaling,
                                   const DropoutState& dropout = {}, mx::StreamOrDevice s = {});

}  // namespace graft::mlx
