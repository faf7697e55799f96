#include "backend/cpu/threads.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "graft/context.h"
#include "graft/error.h"

#if defined(__linux__)
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#endif

namespace graft {
namespace {

// Restores the number of threads when a test ends.
struct ThreadsGuard {
  int before = num_threads();
  ~ThreadsGuard() { set_num_threads(before); }
};

TEST(Threads, EveryTaskRunsOnce) {
  const ThreadsGuard guard;
  for (int threads : {1, 2, 3, 8}) {
    set_num_threads(threads);
    for (int count : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<std::size_t>(count));
      cpu::parallel_for(Context(), count, threads, [&](std::int64_t i, int worker) {
        EXPECT_GE(worker, 0);
        EXPECT_LT(worker, threads);
        runs[static_cast<std::size_t>(i)].fetch_add(1);
      });
      for (const auto& n : runs) EXPECT_EQ(n.load(), 1);
    }
  }
}

TEST(Threads, WorkersThatRunTogetherDiffer) {
  const ThreadsGuard guard;
  set_num_threads(4);
  std::vector<std::atomic<int>> inside(4);
  cpu::parallel_for(Context(), 2000, 4, [&](std::int64_t, int worker) {
    auto& mine = inside[static_cast<std::size_t>(worker)];
    EXPECT_EQ(mine.fetch_add(1), 0);
    mine.fetch_sub(1);
  });
}

TEST(Threads, CallersTakeTurnsAndSeeTheirOwnTasks) {
  const ThreadsGuard guard;
  set_num_threads(2);
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c) {
    callers.emplace_back([] {
      for (int round = 0; round < 200; ++round) {
        std::vector<int> out(5, 0);
        cpu::parallel_for(Context(), 5,
                          [&](std::int64_t i) { out[static_cast<std::size_t>(i)] = 1; });
        for (int v : out) ASSERT_EQ(v, 1);
      }
    });
  }
  for (auto& caller : callers) caller.join();
}

TEST(Threads, TasksWaitForEarlierOnes) {
  for (int round = 0; round < 100; ++round) {
    cpu::Countdown ready;
    ready.start(3);
    std::array<int, 3> made = {};
    std::atomic<int> sums{0};
    cpu::parallel_for(Context(), 20, [&](std::int64_t i) {
      if (i < 3) {
        made[static_cast<std::size_t>(i)] = 1;
        return ready.done();
      }
      ready.wait();
      sums += made[0] + made[1] + made[2];
    });
    EXPECT_EQ(sums, 17 * 3);
  }
}

TEST(Threads, NestedCallsRun) {
  std::atomic<int> runs{0};
  cpu::parallel_for(Context(), 3, [&](std::int64_t) {
    cpu::parallel_for(Context(), 3, [&](std::int64_t) { runs.fetch_add(1); });
  });
  EXPECT_EQ(runs.load(), 9);
}

TEST(Threads, TheNumberMayChangeWhileOthersCall) {
  const ThreadsGuard guard;
  std::thread changer([] {
    for (int round = 0; round < 200; ++round) set_num_threads(1 + round % 4);
  });
  for (int round = 0; round < 200; ++round) {
    const int threads = num_threads();
    cpu::parallel_for(Context(), 9, threads,
                      [&](std::int64_t, int worker) { EXPECT_LT(worker, threads); });
  }
  changer.join();
}

TEST(Threads, WorkersThatSleepAreWoken) {
  const ThreadsGuard guard;
  set_num_threads(3);
  for (int round = 0; round < 20; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));  // longer than anybody spins
    std::atomic<int> inside{0};
    cpu::parallel_for(Context(), 3, [&](std::int64_t) {
      ++inside;
      while (inside < 3) std::this_thread::yield();  // so all three threads have to come
    });
    EXPECT_EQ(inside, 3);
  }
}

// A task that the system has put aside for long: who waits for it, in a task or as the caller, must
// leave the cores to others.
TEST(Threads, WhoWaitsLongSleeps) {
  const ThreadsGuard guard;
  set_num_threads(2);
  for (const bool in_a_task : {true, false}) {
    cpu::Countdown slow;
    slow.start(1);
    const std::clock_t begin = std::clock();  // time on all cores
    cpu::parallel_for(Context(), 2, [&](std::int64_t i) {
      if (i == 1 && in_a_task) return slow.wait();
      if (i == 1) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(200));
      slow.done();
    });
    EXPECT_LT(std::clock() - begin, CLOCKS_PER_SEC / 20);
  }
}

#if defined(__linux__)

int threads_of_this_process() {
  const std::filesystem::directory_iterator tasks("/proc/self/task");
  return static_cast<int>(std::distance(begin(tasks), end(tasks)));
}

// A thread that has been joined may be listed for a moment still.
bool has_threads(int wanted) {
  for (int i = 0; i < 1000 && threads_of_this_process() != wanted; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return threads_of_this_process() == wanted;
}

// Runs in a process of its own: what it exits with says what went wrong, 77 that the system starts
// threads all the same.
[[noreturn]] void fail_to_start_threads() {
  std::thread([] {}).join();  // with the first one, a sanitizer starts one of its own
  constexpr rlim_t kProcesses = 3;
  rlimit limit;
  getrlimit(RLIMIT_NPROC, &limit);
  const rlimit few = {std::min(kProcesses, limit.rlim_max), limit.rlim_max};
  if (geteuid() == 0 && setuid(65534) != 0) std::_Exit(77);  // root has no limit
  if (setrlimit(RLIMIT_NPROC, &few) != 0) std::_Exit(77);
  const int before = threads_of_this_process();
  std::atomic<int> runs{0};
  const auto run = [&] { cpu::parallel_for(Context(), 8, 8, [&](std::int64_t, int) { ++runs; }); };
  for (int attempt = 0; attempt < 2; ++attempt) {
    try {
      run();
      std::_Exit(77);
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kOutOfMemory) std::_Exit(1);
      if (!std::string(error.what()).starts_with("[threads] could not start worker "))
        std::_Exit(2);
    }
    if (runs != 0) std::_Exit(3);
    if (!has_threads(before)) std::_Exit(4);
  }
  setrlimit(RLIMIT_NPROC, &limit);
  run();
  if (runs != 8) std::_Exit(5);
  if (!has_threads(before + 7)) std::_Exit(6);
  std::_Exit(0);
}

TEST(Threads, AWorkerThatCannotStartIsAnErrorAndLeavesNothing) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");  // a fresh process, without workers
  int code = -1;
  const auto exited = [&code](int status) {
    code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    return code == 0 || code == 77;
  };
  EXPECT_EXIT(fail_to_start_threads(), exited, "");
  if (code == 77) GTEST_SKIP() << "this system starts threads past RLIMIT_NPROC";
}

#endif

TEST(Threads, RefusesANegativeNumber) { EXPECT_THROW(set_num_threads(-1), Error); }

}  // namespace
}  // namespace graft
