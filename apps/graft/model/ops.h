#pragma once

#include "graft/mlx/linear.h"
#include "graft/mlx/linear_cross_entropy.h"
#include "graft/mlx/lora.h"
#include "graft/mlx/swiglu.h"
#include "mlx/array.h"

// What the model is made of. Norms and attention are still composed from MLX's own operations.
namespace graft::app::ops {

namespace mx = ::mlx::core;

using graft::mlx::Dropout;
using graft::mlx::linear;
using graft::mlx::linear_cross_entropy;
using graft::mlx::lora_linear;
using graft::mlx::pack;
using graft::mlx::swiglu;
using graft::mlx::Weight;

mx::array rms_norm(const mx::array& x, const mx::array& weight, float eps);

/// Causal; q (B, T, heads, d), k and v (B, T, kv_heads, d), rotary embedding inside.
mx::array attention(const mx::array& q, const mx::array& k, const mx::array& v, float scale,
                    float rope_theta);

}  // namespace graft::app::ops
