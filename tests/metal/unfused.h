#pragma once

#include <cstddef>
#include <vector>

namespace graft::standin {

/// Sizes of an operation whose costs are counted, all float32: x is (batch, sequence, in).
struct Problem {
  int batch = 1, sequence = 1;
  int in = 0, out = 0;  ///< Features of x and y; an operation over rows has one number of them.
  int rank = 0;         ///< Of the LoRA pair; 0 without one.

  int rows() const { return batch * sequence; }
};

/// What a computation costs if each of its steps is a launch of its own, which reads its operands
/// once and writes its result once.
struct Sequence {
  std::vector<double> steps;  ///< Bytes that each moves.
  double least_flops = 0;     ///< What the products of the formula need; 0 if it has none.

  std::size_t launches() const { return steps.size(); }
  double bytes() const;
};

/// @{
/// The steps as the formulas are written, in an order in which frameworks run them. Backward, what
/// forward made is kept and not made again.
Sequence unfused_lora_delta(const Problem& p);
Sequence unfused_lora_delta_backward(const Problem& p);
Sequence unfused_lora_linear(const Problem& p);
Sequence unfused_lora_linear_backward(const Problem& p);
Sequence unfused_lora_linear_dropout(const Problem& p);
Sequence unfused_lora_linear_dropout_backward(const Problem& p);
Sequence unfused_linear(const Problem& p);
Sequence unfused_linear_dx(const Problem& p);
Sequence unfused_softmax(const Problem& p);
Sequence unfused_softmax_backward(const Problem& p);
Sequence unfused_rms_norm(const Problem& p);
Sequence unfused_rms_norm_backward(const Problem& p);
Sequence unfused_add_rms_norm(const Problem& p);
Sequence unfused_add_rms_norm_backward(const Problem& p);
Sequence unfused_layer_norm(const Problem& p);
Sequence unfused_layer_norm_backward(const Problem& p);
/// @}

}  // namespace graft::standin
