#include "backend/table.h"

// The core has Metal's kernels as text, says what to launch (graft/metal.h), and runs none.

namespace graft::metal {

Support available() { return Support::no("the core runs no Metal kernels; the MLX host does"); }

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
