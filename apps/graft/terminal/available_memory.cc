#include "apps/graft/terminal/available_memory.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>

#include "apps/graft/user_error.h"
#include "graft/llm/process/memory.h"

#ifdef __APPLE__
#include <sys/sysctl.h>
#endif

namespace graft::app {
namespace {

constexpr std::int64_t kUnlimited = std::numeric_limits<std::int64_t>::max();

// The number after `key` in a file of lines such as "MemFree:  123 kB" or "inactive_file 123".
std::optional<std::int64_t> number_after(const std::string& path, const std::string& key) {
  std::ifstream in(path);
  std::string line;
  while (std::getline(in, line)) {
    std::istringstream words(line);
    std::string name;
    std::int64_t value = 0;
    if (words >> name >> value && name == key) return value;
  }
  return std::nullopt;
}

// The number that a file consists of; nothing if there is none, as of a limit that is "max".
std::optional<std::int64_t> number_in(const std::string& path) {
  std::ifstream in(path);
  std::int64_t value = 0;
  if (in >> value) return value;
  return std::nullopt;
}

std::int64_t kilobytes(const std::string& path, const std::string& key) {
  return number_after(path, key).value_or(0) * 1024;
}

// The names of one version's files.
struct CgroupFiles {
  const char* limit;
  const char* usage;
  const char* file_cache;  // in memory.stat
};
constexpr CgroupFiles kVersion1 = {"memory.limit_in_bytes", "memory.usage_in_bytes",
                                   "total_inactive_file"};
constexpr CgroupFiles kVersion2 = {"memory.max", "memory.current", "inactive_file"};

// What one group leaves; a group without a limit leaves all there is.
std::int64_t left_in_group(const std::string& folder, const CgroupFiles& files,
                           std::int64_t free_swap) {
  const std::optional<std::int64_t> limit = number_in(folder + "/" + files.limit);
  const std::optional<std::int64_t> usage = number_in(folder + "/" + files.usage);
  if (!limit || !usage) return kUnlimited;
  std::int64_t left =
      *limit - *usage + number_after(folder + "/memory.stat", files.file_cache).value_or(0);
  if (number_in(folder + "/memory.swap.current")) {
    const std::int64_t most = number_in(folder + "/memory.swap.max").value_or(kUnlimited);
    left += std::min(free_swap, most - *number_in(folder + "/memory.swap.current"));
  }
  return std::max<std::int64_t>(0, left);
}

// The least that a group or one above it leaves. In a container the path may be that of the host,
// where nothing is then found, and the mount itself is the container's group.
std::int64_t left_in_groups(const std::string& mount, std::string path, const CgroupFiles& files,
                            std::int64_t free_swap) {
  std::int64_t left = kUnlimited;
  for (;;) {
    left = std::min(left, left_in_group(mount + path, files, free_swap));
    const std::size_t slash = path.rfind('/');
    if (slash == std::string::npos) return left;
    path.resize(slash);
  }
}

std::int64_t left_in_cgroups(const std::string& root, std::int64_t free_swap) {
  std::int64_t left = kUnlimited;
  std::ifstream in(root + "/proc/self/cgroup");  // lines of ID:CONTROLLERS:PATH
  std::string line;
  while (std::getline(in, line)) {
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const std::string path = line.substr(second + 1);
    const std::string mount = root + "/sys/fs/cgroup";
    if (controllers == ",,") {
      left = std::min(left, left_in_groups(mount, path, kVersion2, free_swap));
    } else if (controllers.find(",memory,") != std::string::npos) {
      left = std::min(left, left_in_groups(mount + "/memory", path, kVersion1, free_swap));
    }
  }
  return left;
}

std::int64_t left_of(int resource, std::int64_t used) {
  rlimit limit{};
  if (::getrlimit(static_cast<decltype(RLIMIT_AS)>(resource), &limit) != 0 ||
      limit.rlim_cur == RLIM_INFINITY) {
    return kUnlimited;
  }
  return std::max<std::int64_t>(0, static_cast<std::int64_t>(limit.rlim_cur) - used);
}

std::int64_t left_on_machine(const std::string& root, std::int64_t free_swap) {
#ifdef __APPLE__
  (void)root;
  std::int64_t memory = 0;
  std::size_t size = sizeof memory;
  if (::sysctlbyname("hw.memsize", &memory, &size, nullptr, 0) != 0) return kUnlimited;
  return std::max<std::int64_t>(0, memory + free_swap - resident_memory_bytes());
#else
  const std::string meminfo = root + "/proc/meminfo";
  if (!number_after(meminfo, "MemAvailable:")) return kUnlimited;  // a kernel before 3.14
  return kilobytes(meminfo, "MemAvailable:") + free_swap;
#endif
}

}  // namespace

AvailableMemory available_memory(const std::string& root) {
  const std::int64_t free_swap = kilobytes(root + "/proc/meminfo", "SwapFree:");
  const std::string status = root + "/proc/self/status";
  AvailableMemory least{left_on_machine(root, free_swap), "this machine"};
  const auto consider = [&](std::int64_t bytes, const char* limit) {
    if (bytes < least.bytes) least = {bytes, limit};
  };
  consider(left_in_cgroups(root, free_swap), "the control group");
  consider(left_of(RLIMIT_AS, kilobytes(status, "VmSize:")), "ulimit -v");
  consider(left_of(RLIMIT_DATA, kilobytes(status, "VmData:")), "ulimit -d");
  return least;
}

}  // namespace graft::app
