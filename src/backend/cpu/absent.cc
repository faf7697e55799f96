#include "backend/table.h"

// Calls that have no CPU kernel yet.

namespace graft::cpu {

#define GRAFT_ABSENT(Params, function, op)                                                     \
  Support supports(const Params&) { return Support::no("no CPU kernel for " op " yet"); }      \
  void function(Context&, const Params& params) { require(#function, cpu::supports(params)); } \
  std::size_t scratch_bytes(const Params&, int) { return 0; }
GRAFT_ABSENT(LayerNormForward, layer_norm_forward, "layer_norm")
GRAFT_ABSENT(LayerNormBackward, layer_norm_backward, "layer_norm")
GRAFT_ABSENT(SoftmaxForward, softmax_forward, "softmax")
GRAFT_ABSENT(SoftmaxBackward, softmax_backward, "softmax")
#undef GRAFT_ABSENT

}  // namespace graft::cpu
