#include "apps/graft/terminal/memory.h"

#include <sys/resource.h>

namespace graft::app {

std::int64_t peak_memory_bytes() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
#ifdef __APPLE__
  return usage.ru_maxrss;  // bytes there
#else
  return std::int64_t{usage.ru_maxrss} * 1024;
#endif
}

}  // namespace graft::app
