#include "apps/graft/allocator.h"

#include <cstdlib>  // defines __GLIBC__

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace graft::app {

void keep_freed_memory() {
#if defined(__GLIBC__)
  constexpr int kLargest = 1 << 30;
  mallopt(M_MMAP_THRESHOLD, kLargest);
  mallopt(M_TRIM_THRESHOLD, kLargest);
  // Arenas of other threads are limited to 64 MiB and would map larger blocks all the same.
  mallopt(M_ARENA_MAX, 1);
#endif
}

}  // namespace graft::app
