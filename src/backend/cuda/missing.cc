#include "backend/table.h"

// Calls that have no CUDA kernel yet. A room that gets one has a cuda.cu, and no line here.

namespace graft::cuda {

#define GRAFT_MISSING(Params, function)                                                         \
  Support supports(const Params&) { return Support::no(#function " has no CUDA kernel yet"); }  \
  void function(Context&, const Params& params) { require(#function, cuda::supports(params)); } \
  std::size_t scratch_bytes(const Params&, int) { return 0; }
GRAFT_MISSING(LayerNormForward, layer_norm_forward)
GRAFT_MISSING(LayerNormBackward, layer_norm_backward)
GRAFT_MISSING(RmsNormForward, rms_norm_forward)
GRAFT_MISSING(RmsNormBackward, rms_norm_backward)
GRAFT_MISSING(Rope, rope)
GRAFT_MISSING(SoftmaxForward, softmax_forward)
GRAFT_MISSING(SoftmaxBackward, softmax_backward)
GRAFT_MISSING(SwigluForward, swiglu_forward)
GRAFT_MISSING(SwigluBackward, swiglu_backward)
#undef GRAFT_MISSING

}  // namespace graft::cuda
