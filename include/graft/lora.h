#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "graft/context.h"
#include "graft/export.h"
#include "graft/supports.h"
#include "graft/tensor_view.h"
#include "graft/weight.h"

namespace graft {

/// A low-rank adapter: the layer's weight becomes Wᵀ + scaling·A·B (Hu et al., LoRA,
/// arXiv:2106.09685; scaling = alpha / rank there).
///
/// Any strides: MLX keeps A (in, rank) and B (rank, out); PEFT's lora_A.weight (rank, in) and
/// lora_B.weight (out, rank) are the transposed() views of their tensors.
struct Adapter {
  ConstTensorView a;     ///< (in_features, rank), float32, bfloat16 or (GPUs) float16.
  ConstTensorView b;     ///< (rank, out_features), float32, bfloat16 or (GPUs) float16.
  float scaling = 1.0f;  ///< Multiplies A·B: alpha / rank.
};

/// Inverted dropout on the adapter's input, drop(x) = mask·x / (1 − p); the base product sees x.
///
/// The mask is Philox 4x32-7 (Salmon et al., SC11), 16 bits an element: key = seed; counter =
/// offset + e / 8 with e the row-major index of the element in x (M, in_features); field = e mod 8
/// of the counter's four words, the low half of a word before its high half. An element is dropped
/// if its field is below threshold(), and multiplied by scale() if not, whatever value it has; p is
/// taken to the nearest 1 / 65536. The mask is the same on every back-end, and made again in
/// backward from the same seed and offset, never stored. Two calls whose counters
/// [offset, offset + ⌈M·in_features / 8⌉), modulo 2⁶⁴, overlap share masks.
struct Dropout {
  float p = 0.0f;            ///< Chance that an element is dropped, in [0, 1).
  std::uint64_t seed = 0;    ///< Philox key.
  std::uint64_t offset = 0;  ///< Philox counter of the first eight elements.
  /// Two numbers in the device's memory, seed and offset, that take the place of the two above:
  /// read when a kernel runs, so that a replayed CUDA graph draws new masks. CUDA only; null: none.
  const std::uint64_t* state = nullptr;
  /// Where the offset is, if not behind the seed at `state`; null: it is.
  const std::uint64_t* offset_state = nullptr;

  /// Whether p is such a chance.
  bool valid() const { return p >= 0.0f && p < 1.0f; }
  /// 65536·p rounded to the nearest integer, halves up, and at most 65535: so near to 1 that all
  /// would be dropped, one element of 65536 is kept. 0, of any p below 1 / 131072, is no dropout.
  std::uint32_t threshold() const {
    return std::min(static_cast<std::uint32_t>(double{p} * 65536.0 + 0.5), 65535u);
  }
  /// What an element that is kept is multiplied by: 1 / (1 − p) of the p that the threshold stands
  /// for.
  float scale() const { return 65536.0f / static_cast<float>(65536u - threshold()); }
};

/// Ranks that the kernels take.
inline constexpr std::int64_t kMaxLoraRank = 256;

/// y = scaling·(drop(x)·A)·B, or y += with `accumulate`.
struct LoraDeltaForward {
  ConstTensorView x;        ///< (M, in_features), any strides, float32, bfloat16 or (GPUs) float16.
  Adapter adapter;          ///< A and B for the features of x and y.
  Dropout dropout;          ///< On x on its way to A; none by default.
  bool accumulate = false;  ///< Add to y instead of overwriting it.
  TensorView y;             ///< (M, out_features), rows dense, float32, bfloat16 or (GPUs) float16.
  TensorView h;  ///< (M, rank) float32, dense, optional: drop(x)·A, unscaled, overwritten.
};

/// Gradients of lora_delta; each output is optional and overwritten.
struct LoraDeltaBackward {
  ConstTensorView dy;  ///< (M, out_features), any strides.
  ConstTensorView x;   ///< (M, in_features), as given to forward; needed for da.
  ConstTensorView h;   ///< (M, rank) float32, as forward wrote it; needed for db.
  Adapter adapter;     ///< A and B for the features of x and y.
  Dropout dropout;     ///< As given to forward.
  TensorView dx;       ///< (M, in_features) = drop'(scaling·dy·Bᵀ·Aᵀ), rows dense.
  TensorView da;       ///< (in_features, rank) float32, any strides.
  TensorView db;       ///< (rank, out_features) float32, any strides.
};

/// y = x·Wᵀ + bias + scaling·(drop(x)·A)·B in one pass: the tile that holds x·Wᵀ in registers goes
/// on over h and B before it is stored.
struct LoraLinearForward {
  ConstTensorView x;     ///< (M, in_features), any strides, float32, bfloat16 or (GPUs) float16.
  Weight weight;         ///< (out_features, in_features).
  ConstTensorView bias;  ///< (out_features), optional.
  Adapter adapter;       ///< A and B for the features of x and y.
  Dropout dropout;       ///< On x on its way to A; none by default.
  TensorView y;          ///< (M, out_features), rows dense, overwritten.
  TensorView h;          ///< (M, rank) float32, dense, optional: drop(x)·A, unscaled, overwritten.
};

/// Gradients of lora_linear; W is frozen. Each output is optional and overwritten.
struct LoraLinearBackward {
  ConstTensorView dy;  ///< (M, out_features), any strides.
  ConstTensorView x;   ///< (M, in_features), as given to forward; needed for da.
  ConstTensorView h;   ///< (M, rank) float32, as forward wrote it; needed for db.
  Weight weight;       ///< Needed for dx; if packed, for kForwardAndBackward.
  Adapter adapter;     ///< A and B for the features of x and y.
  Dropout dropout;     ///< As given to forward.
  TensorView dx;       ///< (M, in_features) = dy·W + drop'(scaling·dy·Bᵀ·Aᵀ), rows dense.
  TensorView da;       ///< (in_features, rank) float32, any strides.
  TensorView db;       ///< (rank, out_features) float32, any strides.
};

/// Layers that read one x, as q, k and v do, or gate and up: x is the same view in all. Each has
/// its own weight, bias, adapter, dropout, rank and y; one without an adapter leaves A, B, dropout
/// and h away. x is read and packed once for all of them.
using LoraSiblingsForward = std::span<const LoraLinearForward>;

/// Their gradients: x and dx are the same views in all, or absent in all. dx is the sum over the
/// layers, Σ dy·W + drop'(scaling·dy·Bᵀ·Aᵀ), accumulated in float32 and written once. One without
/// an adapter leaves A, B, h, da and db away.
using LoraSiblingsBackward = std::span<const LoraLinearBackward>;

/// @{
/// Whether such a call can run here, and if not, why.
GRAFT_EXPORT Support supports(const LoraDeltaForward& params);
GRAFT_EXPORT Support supports(const LoraDeltaBackward& params);
GRAFT_EXPORT Support supports(const LoraLinearForward& params);
GRAFT_EXPORT Support supports(const LoraLinearBackward& params);
GRAFT_EXPORT Support supports(const LoraSiblingsForward& layers);
GRAFT_EXPORT Support supports(const LoraSiblingsBackward& layers);
/// @}

/// @{
/// Bytes of scratch that such a call takes from a context of so many threads. Reads no tensor.
/// Throws Error for a call that is not supported.
GRAFT_EXPORT std::size_t scratch_bytes(const LoraDeltaForward& params, int threads = num_threads());
GRAFT_EXPORT std::size_t scratch_bytes(const LoraDeltaBackward& params,
                                       int threads = num_threads());
GRAFT_EXPORT std::size_t scratch_bytes(const LoraLinearForward& params,
                                       int threads = num_threads());
GRAFT_EXPORT std::size_t scratch_bytes(const LoraLinearBackward& params,
                                       int threads = num_threads());
GRAFT_EXPORT std::size_t scratch_bytes(const LoraSiblingsForward& layers,
                                       int threads = num_threads());
GRAFT_EXPORT std::size_t scratch_bytes(const LoraSiblingsBackward& layers,
                                       int threads = num_threads());
/// @}

/// @{
/// Each throws Error; on an error no output is touched.
GRAFT_EXPORT void lora_delta_forward(Context& context, const LoraDeltaForward& params);
GRAFT_EXPORT void lora_delta_backward(Context& context, const LoraDeltaBackward& params);
GRAFT_EXPORT void lora_linear_forward(Context& context, const LoraLinearForward& params);
GRAFT_EXPORT void lora_linear_backward(Context& context, const LoraLinearBackward& params);
GRAFT_EXPORT void lora_linear_forward(Context& context, const LoraSiblingsForward& layers);
GRAFT_EXPORT void lora_linear_backward(Context& context, const LoraSiblingsBackward& layers);
/// @}

}  // namespace graft
