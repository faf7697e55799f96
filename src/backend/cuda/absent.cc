#include "backend/backend.h"

// Stands in for the CUDA back-end in builds that do not have it.

namespace graft::cuda {

Support available() { return Support::no("this build has no CUDA kernels"); }

}  // namespace graft::cuda
