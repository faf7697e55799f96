// What is left of memory, read from made-up files of /proc and /sys.

#include "apps/graft/terminal/available_memory.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <filesystem>
#include <string>

#include "tests/support/tiny_model.h"

namespace graft::app {
namespace {

#ifdef __linux__

using llm::testing::TemporaryFolder;
using llm::testing::write_text;

constexpr std::int64_t kMiB = 1 << 20;

class AvailableMemoryTest : public ::testing::Test {
 protected:
  AvailableMemoryTest() {
    for (const int resource : {RLIMIT_AS, RLIMIT_DATA}) {
      rlimit limit{};
      ::getrlimit(static_cast<decltype(RLIMIT_AS)>(resource), &limit);
      limited_ |= limit.rlim_cur != RLIM_INFINITY;
    }
    put("proc/meminfo", "MemTotal: 9000000 kB\nMemAvailable: 4096000 kB\nSwapFree: 0 kB\n");
  }
  void SetUp() override {
    if (limited_) GTEST_SKIP() << "this process has limits of its own";
  }

  void put(const std::string& path, const std::string& text) const {
    const std::string file = folder_.file(path);
    std::filesystem::create_directories(std::filesystem::path(file).parent_path());
    write_text(file, text);
  }

  void expect(std::int64_t bytes, const std::string& limit) const {
    const AvailableMemory available = available_memory(folder_.path());
    EXPECT_EQ(available.bytes, bytes);
    EXPECT_EQ(available.limit, limit);
  }

 private:
  const TemporaryFolder folder_;
  bool limited_ = false;
};

TEST_F(AvailableMemoryTest, IsTheMachinesWithSwap) {
  expect(4000 * kMiB, "this machine");
  put("proc/meminfo", "MemAvailable: 4096000 kB\nSwapFree: 1024000 kB\n");
  expect(5000 * kMiB, "this machine");
}

TEST_F(AvailableMemoryTest, IsTheLeastOfTheGroupsAbove) {
  put("proc/self/cgroup", "0::/outer/inner\n");
  put("sys/fs/cgroup/outer/inner/memory.max", "max\n");
  put("sys/fs/cgroup/outer/inner/memory.current", "1048576\n");
  expect(4000 * kMiB, "this machine");
  put("sys/fs/cgroup/outer/memory.max", std::to_string(500 * kMiB));
  put("sys/fs/cgroup/outer/memory.current", std::to_string(200 * kMiB));
  expect(300 * kMiB, "the control group");
  put("sys/fs/cgroup/outer/memory.stat", "anon 1\ninactive_file 104857600\n");  // can be dropped
  expect(400 * kMiB, "the control group");
  put("sys/fs/cgroup/outer/inner/memory.max", std::to_string(2 * kMiB));
  expect(1 * kMiB, "the control group");
}

TEST_F(AvailableMemoryTest, CountsTheSwapThatAGroupMayTake) {
  put("proc/meminfo", "MemAvailable: 4096000 kB\nSwapFree: 102400 kB\n");
  put("proc/self/cgroup", "0::/\n");
  put("sys/fs/cgroup/memory.max", std::to_string(10 * kMiB));
  put("sys/fs/cgroup/memory.current", std::to_string(4 * kMiB));
  expect(6 * kMiB, "the control group");  // no swap there
  put("sys/fs/cgroup/memory.swap.current", std::to_string(1 * kMiB));
  put("sys/fs/cgroup/memory.swap.max", std::to_string(3 * kMiB));
  expect(8 * kMiB, "the control group");
  put("sys/fs/cgroup/memory.swap.max", "max\n");
  expect(106 * kMiB, "the control group");
}

TEST_F(AvailableMemoryTest, ReadsTheFirstVersionOfGroups) {
  // In a container: the path is the host's, and the mount is the group.
  put("proc/self/cgroup", "9:cpu,cpuacct:/\n4:memory:/docker/123\n");
  put("sys/fs/cgroup/memory/memory.limit_in_bytes", std::to_string(100 * kMiB));
  put("sys/fs/cgroup/memory/memory.usage_in_bytes", std::to_string(150 * kMiB));
  put("sys/fs/cgroup/memory/memory.stat", "total_inactive_file 62914560\n");
  expect(10 * kMiB, "the control group");
  put("sys/fs/cgroup/memory/memory.stat", "total_inactive_file 0\n");
  expect(0, "the control group");
  put("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");  // none
  expect(4000 * kMiB, "this machine");
}

#endif

}  // namespace
}  // namespace graft::app
