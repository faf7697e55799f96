#pragma once

#include <cstddef>
#include <cstdint>

#include "graft/context.h"
#include "graft/export.h"
#include "graft/supports.h"
#include "graft/tensor_view.h"

namespace graft {

/// Rotary position embedding (Su et al., RoFormer, arXiv:2104.09864): pair i of a head, i < d / 2,
/// is turned by the angle position / scaling_factor · theta^(−2i / d).
struct Rotary {
  bool enabled = false;    ///< If not, operations that take a Rotary turn nothing.
  float theta = 10000.0f;  ///< Base of the angles' geometric series.
  /// Which elements make pair i: (i, i + d/2), as Hugging Face's Llama does, or (2i, 2i + 1), the
  /// order of the original paper and of Llama weights in GGUF files.
  bool interleaved = false;
  std::int64_t position = 0;  ///< Of the first token, at least 0.
  /// Of linear position scaling (Chen et al., arXiv:2306.15595): a model for n tokens made to serve
  /// n · factor of them. Above 0; 1 is no scaling.
  float scaling_factor = 1.0f;
};

/// y = x turned; token t of every sequence is at `rotary.position + t`. float32 or bfloat16, on
/// CUDA also float16.
struct Rope {
  ConstTensorView x;     ///< (B, T, heads, d), d even, any strides but 1 for the last axis.
  Rotary rotary;         ///< `enabled` is not looked at.
  bool inverse = false;  ///< Turn back instead. The gradient of a turn is the turn back.
  TensorView y;  ///< Shape and dtype of x, overwritten; may be x itself, must not overlap it else.
};

/// Whether such a call can run here, and if not, why.
GRAFT_EXPORT Support supports(const Rope& params);

/// Bytes of scratch that such a call takes from a context of so many threads. Reads no tensor.
/// Throws Error for a call that is not supported.
GRAFT_EXPORT std::size_t scratch_bytes(const Rope& params, int threads = num_threads());

/// Throws Error; on an error no output is touched.
GRAFT_EXPORT void rope(Context& context, const Rope& params);

}  // namespace graft
