#include "graft/capabilities.h"
#include "place.h"

namespace graft::pytorch {

std::string capability_lines(Device device) {
  return guarded([&] {
    std::string lines;
    for (const Capability& one : capabilities(device)) {
      lines += std::string(one.op) +
               (one.direction == Direction::kForward ? " forward " : " backward ") +
               name_of(one.dtype) + (one.support ? " yes" : " no " + one.support.reason) + "\n";
    }
    return lines;
  });
}

}  // namespace graft::pytorch
