#pragma once

#include <cstdint>
#include <vector>

#include "graft/export.h"
#include "graft/supports.h"
#include "graft/tensor_view.h"
#include "graft/weight.h"

namespace graft {

/// Whether an operation has a kernel for usual shapes in one element type.
struct Capability {
  const char* op;       ///< "lora_linear", as errors name it; "lora_siblings" is it over a list.
  Direction direction;  ///< Its value or its gradients; linear_cross_entropy's backward is with dx.
  DType dtype;          ///< Of activations, weights and adapters.
  Support support;      ///< What `supports` says of such a call.
};

/// Asks for every operation, both directions, and float32, bfloat16 and float16 what has a kernel
/// on `device`; in this order.
GRAFT_EXPORT std::vector<Capability> capabilities(Device device);

}  // namespace graft
