#pragma once

#include "graft/attention.h"
#include "graft/layer_norm.h"
#include "graft/linear.h"
#include "graft/linear_cross_entropy.h"
#include "graft/lora.h"
#include "graft/rms_norm.h"
#include "graft/rope.h"
#include "graft/softmax.h"
#include "graft/swiglu.h"

/// Every kind of call that back-ends have kernels for: its params and the function that runs it.
#define GRAFT_FOR_EACH_CALL(X)                  \
  X(AttentionForward, attention_forward)        \
  X(AttentionBackward, attention_backward)      \
  X(LayerNormForward, layer_norm_forward)       \
  X(LayerNormBackward, layer_norm_backward)     \
  X(LinearForward, linear_forward)              \
  X(LinearBackward, linear_backward)            \
  X(LinearCrossEntropy, linear_cross_entropy)   \
  X(LoraDeltaForward, lora_delta_forward)       \
  X(LoraDeltaBackward, lora_delta_backward)     \
  X(LoraLinearForward, lora_linear_forward)     \
  X(LoraLinearBackward, lora_linear_backward)   \
  X(LoraSiblingsForward, lora_linear_forward)   \
  X(LoraSiblingsBackward, lora_linear_backward) \
  X(RmsNormForward, rms_norm_forward)           \
  X(RmsNormBackward, rms_norm_backward)         \
  X(Rope, rope)                                 \
  X(SoftmaxForward, softmax_forward)            \
  X(SoftmaxBackward, softmax_backward)          \
  X(SwigluForward, swiglu_forward)              \
  X(SwigluBackward, swiglu_backward)
