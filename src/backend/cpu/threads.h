#pragma once

#include <atomic>
#include <cstdint>
#include <type_traits>

#include "graft/context.h"

namespace graft::cpu {

namespace internal {
using TaskFn = void (*)(void* state, std::int64_t task, int worker);
void run_tasks(Executor* executor, std::int64_t count, int threads, TaskFn fn, void* state);
}  // namespace internal

/// Calls `task(i, worker)` once for each i in [0, count), on up to `threads` threads of the
/// context's executor or of the pool, and returns when all have run. `worker`, in [0, threads),
/// tells apart the threads that run at the same time: it picks a slice of scratch, so read
/// context.threads() once, for the slices and for this call alike (set_num_threads() may come
/// between). Tasks start in order, whoever runs them, so put the long ones first. They must not
/// throw; a call from inside a task runs all of its tasks on that thread.
template <class Task>
void parallel_for(const Context& context, std::int64_t count, int threads, Task&& task) {
  using Callable = std::remove_reference_t<Task>;
  internal::run_tasks(
      context.executor(), count, threads,
      [](void* state, std::int64_t i, int worker) { (*static_cast<Callable*>(state))(i, worker); },
      const_cast<std::remove_const_t<Callable>*>(&task));
}

/// The same on context.threads() threads, for tasks `task(i)` that need no scratch of their own.
template <class Task>
void parallel_for(const Context& context, std::int64_t count, Task&& task) {
  parallel_for(context, count, context.threads(), [&task](std::int64_t i, int) { task(i); });
}

/// Lets tasks of one parallel_for wait for earlier ones: those start first, so that whoever waits
/// waits for threads that are at work.
class Countdown {
 public:
  /// `count` calls of done() are to come.
  void start(std::int64_t count) { left_.store(count, std::memory_order_relaxed); }
  void done() { left_.fetch_sub(1, std::memory_order_release); }
  /// Returns when all have come; what was written before them can then be read.
  void wait() const {
    if (left_.load(std::memory_order_acquire) > 0) wait_long();
  }

 private:
  void wait_long() const;

  std::atomic<std::int64_t> left_{0};
};

}  // namespace graft::cpu
