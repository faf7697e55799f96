#include "backend/table.h"

// Calls that have no CUDA kernel yet. A room that gets one has a cuda.cu, and no line here.

namespace graft::cuda {

#define GRAFT_MISSING(Params, function)                                                         \
  Support supports(const Params&) { return Support::no(#function " has no CUDA kernel yet"); }  \
  void function(Context&, const Params& params) { require(#function, cuda::supports(params)); } \
  std::size_t scratch_bytes(const Params&, int) { return 0; }
GRAFT_MISSING(LinearForward, linear_forward)
GRAFT_MISSING(LinearBackward, linear_backward)
GRAFT_MISSING(LinearCrossEntropy, linear_cross_entropy)
GRAFT_MISSING(LoraDeltaForward, lora_delta_forward)
GRAFT_MISSING(LoraDeltaBackward, lora_delta_backward)
GRAFT_MISSING(LoraLinearForward, lora_linear_forward)
GRAFT_MISSING(LoraLinearBackward, lora_linear_backward)
GRAFT_MISSING(LoraSiblingsForward, lora_linear_forward)
GRAFT_MISSING(LoraSiblingsBackward, lora_linear_backward)
#undef GRAFT_MISSING

}  // namespace graft::cuda
