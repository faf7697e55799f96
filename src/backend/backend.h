#pragma once

#include "graft/supports.h"

namespace graft {

// What each back-end says of itself. A build without one links that back-end's absent.cc.
namespace cuda {
Support available();
}
namespace metal {
Support available();
}

}  // namespace graft
