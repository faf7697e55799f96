#pragma once

#include <cstdint>
#include <type_traits>

namespace graft::cpu {

namespace internal {
using TaskFn = void (*)(void* state, std::int64_t task, int worker);
void run_tasks(std::int64_t count, TaskFn fn, void* state);
}  // namespace internal

/// Calls `task(i, worker)` once for each i in [0, count), on up to `num_threads()` threads, and
/// returns when all have run. `worker`, in [0, num_threads()), tells apart the threads that run at
/// the same time: it picks a slice of scratch. Tasks start in order, so put the long ones first.
/// They must not throw; a call from inside a task runs all of its tasks on that thread.
template <class Task>
void parallel_for(std::int64_t count, Task&& task) {
  using Callable = std::remove_reference_t<Task>;
  internal::run_tasks(
      count,
      [](void* state, std::int64_t i, int worker) { (*static_cast<Callable*>(state))(i, worker); },
      const_cast<std::remove_const_t<Callable>*>(&task));
}

}  // namespace graft::cpu
