#pragma once

#include "graft/linear.h"
#include "graft/mlx/detail/primitive.h"

namespace graft::mlx::detail {

// What a linear call is besides its arrays, which come in this order: x, [w], [bias].
struct LinearCall {
  Weight weight;      // if absent, w is among the arrays
  bool bias = false;  // bias is among the arrays

  bool plain() const { return !weight.present(); }
  std::size_t bias_index() const { return plain() ? 2 : 1; }
  std::size_t count() const { return bias_index() + (bias ? 1u : 0u); }
  int out_features(const Arrays& inputs) const {
    return plain() ? inputs[1].shape(0) : static_cast<int>(weight.out_features());
  }

  bool operator==(const LinearCall&) const = default;
};

// Whether the kernels take this call forward; the arrays need not be evaluated.
Support supports_forward(const LinearCall& call, const Arrays& inputs, mx::Stream s);

// y, (..., out_features), fused and composed.
mx::array fused_linear(const LinearCall& call, const Arrays& inputs, const Caller& caller,
                       mx::Stream s);
mx::array composed_linear(const LinearCall& call, const Arrays& inputs, mx::Stream s);

}  // namespace graft::mlx::detail
