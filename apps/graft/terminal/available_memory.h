#pragma once

#include <cstdint>
#include <string>

namespace graft::app {

/// How much more memory this process may take, and what says so.
struct AvailableMemory {
  std::int64_t bytes = 0;
  std::string limit;  ///< "this machine", "the control group", "ulimit -v" or "ulimit -d".
};

/// The least of what the machine, the process's control groups (cgroup v1 and v2) and its resource
/// limits (RLIMIT_AS, RLIMIT_DATA) leave it. On Linux the files of /proc and /sys below `root` are
/// read; elsewhere the machine's memory less what the process has counts.
///
/// Swap counts as available: a run that needs it is slow, but is not killed, and whoever gave the
/// machine swap may want just that. File caches count too, as the system drops them first.
AvailableMemory available_memory(const std::string& root = "");

}  // namespace graft::app
