#include "backend/table.h"

// The core has Metal's kernels as text (graft/metal.h) and runs none.

namespace graft::metal {

Support available() { return Support::no("the core runs no Metal kernels; the MLX host does"); }

#define GRAFT_BY_HOST(Params) \
  Support supports(const Params&) { return available(); }
GRAFT_BY_HOST(LayerNormForward)
GRAFT_BY_HOST(LayerNormBackward)
GRAFT_BY_HOST(LinearForward)
GRAFT_BY_HOST(LinearBackward)
GRAFT_BY_HOST(LoraDeltaForward)
GRAFT_BY_HOST(LoraDeltaBackward)
GRAFT_BY_HOST(LoraLinearForward)
GRAFT_BY_HOST(LoraLinearBackward)
GRAFT_BY_HOST(RmsNormForward)
GRAFT_BY_HOST(RmsNormBackward)
GRAFT_BY_HOST(SoftmaxForward)
GRAFT_BY_HOST(SoftmaxBackward)
#undef GRAFT_BY_HOST

Support supports(const LoraSiblingsForward&) {
  return Support::no("Metal has a kernel for one layer at a time");
}
Support supports(const LoraSiblingsBackward&) {
  return Support::no("Metal has a kernel for one layer at a time");
}

#define GRAFT_NO_KERNEL(Params) \
  Support supports(const Params&) { return Support::no("Metal has no kernel for this operation"); }
GRAFT_NO_KERNEL(AttentionForward)
GRAFT_NO_KERNEL(AttentionBackward)
GRAFT_NO_KERNEL(LinearCrossEntropy)
GRAFT_NO_KERNEL(Rope)
GRAFT_NO_KERNEL(SwigluForward)
GRAFT_NO_KERNEL(SwigluBackward)
#undef GRAFT_NO_KERNEL

}  // namespace graft::metal
