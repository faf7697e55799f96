#include "graft/supports.h"

#include "backend/backend.h"

namespace graft {

Support backend_available(DeviceType type) {
  switch (type) {
    case DeviceType::kCpu:
      return {};
    case DeviceType::kCuda:
      return cuda::available();
    case DeviceType::kMetal:
      return metal::available();
  }
  return Support::no("unknown device type");
}

}  // namespace graft
