#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <type_traits>

#include "graft/context.h"

namespace graft::cpu {

namespace internal {
using TaskFn = void (*)(void* state, std::int64_t task, int worker);
void run_tasks(Executor* executor, std::int64_t count, int threads, TaskFn fn, void* state);

/// A number that threads wait on. They spin for a while, so that what comes soon costs 0.1 µs, and
/// then sleep: on a busy machine what they wait for may have been put aside, for milliseconds.
class WaitWord {
 public:
  std::uint32_t load() const { return value_.load(std::memory_order_acquire); }
  void store(std::uint32_t value) { value_.store(value, std::memory_order_release); }
  /// Adds and returns the sum. Sleepers notice after wake_all().
  std::uint32_t add(std::uint32_t change) { return value_.fetch_add(change) + change; }
  void wake_all() {
    if (sleepers_.load() > 0) wake_sleepers();
  }

  /// Returns when the number is `wanted`, or no longer `seen`.
  void wait_for(std::uint32_t wanted, std::chrono::microseconds spin) const;
  void wait_past(std::uint32_t seen, std::chrono::microseconds spin) const;

 private:
  template <class Done>
  void wait_until(const Done& done, std::chrono::microseconds spin) const;
  void sleep_at(std::uint32_t value) const;
  void wake_sleepers();

  std::atomic<std::uint32_t> value_{0};
  mutable std::atomic<int> sleepers_{0};  // looked at after each change of the number, as that is
                                          // looked at after each change of this
};

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
  void start(std::int64_t count) { left_.store(static_cast<std::uint32_t>(count)); }
  void done() {
    if (left_.add(~std::uint32_t{0}) == 0) left_.wake_all();
  }
  /// Returns when all have come; what was written before them can then be read.
  void wait() const {
    if (left_.load() != 0) wait_long();
  }

 private:
  void wait_long() const;

  internal::WaitWord left_;
};

}  // namespace graft::cpu
