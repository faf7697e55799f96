#include "graft/llm/process/allocator.h"

#include <mlx/memory.h>

#include <cstdlib>  // defines __GLIBC__

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace graft::llm {

void keep_freed_memory() {
#if defined(__GLIBC__)
  constexpr int kLargest = 1 << 30;
  mallopt(M_MMAP_THRESHOLD, kLargest);
  mallopt(M_TRIM_THRESHOLD, kLargest);
  // Arenas of other threads are limited to 64 MiB and would map larger blocks all the same.
  mallopt(M_ARENA_MAX, 1);
#endif
}

void return_freed_memory() {
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
}

void bound_run_ahead(std::int64_t bytes) {
  ::mlx::core::set_memory_limit(::mlx::core::get_active_memory() + static_cast<std::size_t>(bytes));
  ::mlx::core::set_cache_limit(0);
}

}  // namespace graft::llm
