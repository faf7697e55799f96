#include "graft/llm/process/memory.h"

#include <sys/resource.h>
#include <unistd.h>

#include <fstream>

#ifdef __APPLE__
#include <mach/mach.h>
#endif

namespace graft::llm {

std::int64_t peak_memory_bytes() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
#ifdef __APPLE__
  return usage.ru_maxrss;  // bytes there
#else
  return std::int64_t{usage.ru_maxrss} * 1024;
#endif
}

std::int64_t resident_memory_bytes() {
#ifdef __APPLE__
  mach_task_basic_info info{};
  mach_msg_type_number_t count = MACH_TASK_BASIC_INFO_COUNT;
  if (::task_info(mach_task_self(), MACH_TASK_BASIC_INFO, reinterpret_cast<task_info_t>(&info),
                  &count) != KERN_SUCCESS) {
    return 0;
  }
  return static_cast<std::int64_t>(info.resident_size);
#else
  std::ifstream in("/proc/self/statm");
  std::int64_t all = 0, resident = 0;
  in >> all >> resident;
  return resident * ::sysconf(_SC_PAGESIZE);
#endif
}

}  // namespace graft::llm
