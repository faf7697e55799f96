#pragma once

#include "graft/mlx/detail/primitive.h"

namespace graft::mlx::detail {

// What a lora_delta or lora_linear call is besides its arrays. The arrays come in this order, the
// optional ones only if present: x, a, b, [w], [bias], [seed, offset].
struct LoraCall {
  Weight weight;
  bool plain = false;  // w is among the arrays; neither: lora_delta
  bool bias = false;   // bias is among the arrays
  float scaling = 1.0f;
  float dropout = 0.0f;  // if not 0, seed and offset are among the arrays

  bool has_weight() const { return plain || weight.present(); }
  std::size_t w() const { return 3; }
  std::size_t bias_index() const { return 3u + (plain ? 1u : 0u); }
  std::size_t seed() const { return bias_index() + (bias ? 1u : 0u); }
  std::size_t offset() const { return seed() + 1; }
  std::size_t count() const { return seed() + (dropout > 0 ? 2u : 0u); }

  bool operator==(const LoraCall&) const = default;
};

// y, (..., out_features): fused where the device of `s` has kernels for the call, else composed.
mx::array lora(const LoraCall& call, const Arrays& inputs, const Caller& caller, mx::Stream s);

// {y, h} from MLX ops, h = drop(x)·A in float32.
Arrays composed_lora(const LoraCall& call, const Arrays& inputs, mx::Stream s);

// Throws std::invalid_argument unless A (in, r) and B (r, out) are of one rank; and unless they fit
// x too, and scaling is finite.
void expect_pair(const char* op, const mx::array& a, const mx::array& b);
void expect_adapter(const char* op, const mx::array& x, const mx::array& a, const mx::array& b,
                    float scaling);

// Seed or offset, which must be one integer, as uint64.
mx::array counter_of(const char* op, const char* name, const mx::array& value, mx::Stream s);

}  // namespace graft::mlx::detail
