#include "backend/backend.h"

// Stands in for the Metal back-end in builds that do not have it.

namespace graft::metal {

Support available() { return Support::no("this build has no Metal kernels"); }

}  // namespace graft::metal
