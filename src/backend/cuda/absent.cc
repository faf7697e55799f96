#include "backend/table.h"

// Stands in for the CUDA back-end in builds that do not have it: every call is answered "no".

namespace graft::cuda {

Support available() { return Support::no("this build has no CUDA kernels"); }

#define GRAFT_ABSENT(Params, function)                                        \
  Support supports(const Params&) { return available(); }                     \
  void function(Context&, const Params&) { require(#function, available()); } \
  std::size_t scratch_bytes(const Params&, int) { return 0; }
GRAFT_FOR_EACH_CALL(GRAFT_ABSENT)
#undef GRAFT_ABSENT

}  // namespace graft::cuda
