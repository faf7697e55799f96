#include "backend/backend.h"

// The core has Metal's kernels as text (graft/metal.h) and runs none.

namespace graft::metal {

Support available() { return Support::no("the core runs no Metal kernels; the MLX host does"); }

}  // namespace graft::metal
