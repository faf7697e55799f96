#include "backend/cpu/threads.h"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <thread>
#include <vector>

#include "graft/context.h"
#include "graft/error.h"

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

TEST(Threads, RefusesANegativeNumber) { EXPECT_THROW(set_num_threads(-1), Error); }

}  // namespace
}  // namespace graft
