#pragma once

#include "backend/cuda/call.h"
#include "graft/lora.h"
#include "graft/supports.h"
#include "graft/weight.h"
#include "product/cuda/paths.h"

// What the rooms of linear, lora and the loss ask of their operands, alike.

namespace graft::cuda {

/// Yes if `view` is absent, float32, float16 or bfloat16. "No" names the tensor.
Support float_on_cuda(const char* tensor, const ConstTensorView& view);
/// Yes if it is absent, or plain and of such a type.
Support weight_on_cuda(const Weight& weight);
Support adapter_on_cuda(const Adapter& adapter);

/// @{
/// As Call::reaches, of all that an operand has.
void reaches(const Call& call, const Weight& weight);
void reaches(const Call& call, const Adapter& adapter, const Dropout& dropout);
/// @}

/// `support`, and if it is yes, the path of the term that `make_term` makes.
template <class MakeTerm>
Support on_path(Support support, Device device, const MakeTerm& make_term) {
  if (support.yes) support.path = path_name(make_term(), facts_of(device.index));
  return support;
}

/// W as a product's (K, N): of y = x·Wᵀ, and of dx = dy·W.
inline ConstTensorView forward_view(const Weight& w) { return w.view().transposed(); }
inline ConstTensorView backward_view(const Weight& w) { return w.view(); }

/// Half-precision activations multiply in their own type where no weight says otherwise.
inline DType multiply_type(const ConstTensorView& activations) { return activations.dtype(); }

/// Null where nothing is dropped.
inline const Dropout* active(const Dropout& dropout) {
  return dropout.threshold() > 0 ? &dropout : nullptr;
}

}  // namespace graft::cuda
