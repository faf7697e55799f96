#include "backend/cpu/threads.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "graft/context.h"
#include "graft/error.h"

#if defined(__linux__)
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace graft::cpu {
namespace {

void pause_briefly() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

// How long a thread spins before it sleeps: the calls of a training step follow each other sooner,
// and find workers awake (0.1 µs) instead of having to wake them (25–70 µs). By the clock, so that
// one that the system puts aside has spun enough. With another process computing on each core,
// shorter spins are slower, no spins much slower, and ones that yield instead of sleeping no
// faster.
constexpr microseconds kSpin{200};

// Spins until `done()` for as long as told; says if it is. What comes soon costs no look at the
// clock.
template <class Done>
bool spin_until(const Done& done, microseconds spin) {
  constexpr int kPausesALook = 32;  // at the clock: some 1 µs
  if (spin.count() == 0) return false;
  Clock::time_point end = Clock::time_point::max();
  do {
    for (int i = 0; i < kPausesALook; ++i) {
      if (done()) return true;
      pause_briefly();
    }
    if (end == Clock::time_point::max()) end = Clock::now() + spin;
  } while (Clock::now() < end);
  return false;
}

// Cores this process may run on.
std::vector<int> allowed_cores() {
  std::vector<int> cores;
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    for (int core = 0; core < CPU_SETSIZE; ++core) {
      if (CPU_ISSET(core, &set)) cores.push_back(core);
    }
  }
#endif
  if (cores.empty()) {
    const int count = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
    for (int core = 0; core < count; ++core) cores.push_back(core);
  }
  return cores;
}

void pin_to(std::thread& thread, int core) {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(core, &set);
  pthread_setaffinity_np(thread.native_handle(), sizeof(set), &set);
#else
  (void)thread, (void)core;
#endif
}

int current_core() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

int default_threads() {
  const int cores = static_cast<int>(allowed_cores().size());
  if (const char* text = std::getenv("GRAFT_NUM_THREADS")) {
    const int wanted = std::atoi(text);
    if (wanted > 0) return wanted;
  }
  return cores;
}

constexpr int kMostThreads = 1024;

// Workers and callers meet in `ticket_`: the number of tasks of the current job in the upper half,
// the next task to hand out in the lower one. Whoever adds one and gets a task below the count owns
// that task; a worker that comes late gets none and touches nothing, so a caller never waits for
// it. A job's function is written only while no task is owned.
class Pool {
 public:
  explicit Pool(int threads) : threads_(threads) {
    const std::vector<int> cores = allowed_cores();
    const bool one_core_each = threads <= static_cast<int>(cores.size());
    if (!one_core_each) spin_ = microseconds{0};
    start_workers();
    if (!one_core_each) return;
    free_core_ = cores.front();
    for (std::size_t i = 0; i < workers_.size(); ++i) {
      cores_.push_back(cores[i + 1]);
      pin_to(workers_[i], cores_[i]);
    }
  }

  ~Pool() { stop_workers(); }

  int threads() const { return threads_; }

  void run(std::int64_t count, internal::TaskFn fn, void* state) {
    make_room_for_caller();
    fn_ = fn;
    state_ = state;
    finished_.store(0);
    ticket_.store(static_cast<std::uint64_t>(count) << 32, std::memory_order_release);
    wake_.add(1);
    wake_.wake_all();

    take_tasks(0);
    finished_.wait_for(static_cast<std::uint32_t>(count), spin_);
  }

 private:
  static bool has_task(std::uint64_t ticket) { return (ticket & 0xffffffffu) < (ticket >> 32); }

  void take_tasks(int worker) {
    while (has_task(ticket_.load(std::memory_order_relaxed))) {
      const std::uint64_t ticket = ticket_.fetch_add(1, std::memory_order_acq_rel);
      if (!has_task(ticket)) return;
      fn_(state_, static_cast<std::int64_t>(ticket & 0xffffffffu), worker);
      if (finished_.add(1) == ticket >> 32) finished_.wake_all();
    }
  }

  // All of them, or none and an Error.
  void start_workers() {
    try {
      for (int i = 1; i < threads_; ++i) workers_.emplace_back([this, i] { work(i); });
    } catch (const std::exception& error) {
      const std::size_t started = workers_.size();
      stop_workers();
      throw Error(ErrorCode::kOutOfMemory, "[threads] could not start worker " +
                                               std::to_string(started + 1) + " of " +
                                               std::to_string(threads_ - 1) + ": " + error.what());
    }
  }

  void stop_workers() {
    stop_.store(true);
    wake_.add(1);
    wake_.wake_all();
    for (std::thread& worker : workers_) worker.join();
  }

  void work(int worker);

  // An unpinned worker may be woken on its caller's core and spin against it, so each worker has a
  // core of its own; the caller, which is not ours to pin, is given way to.
  void make_room_for_caller() {
    const int here = cores_.empty() ? -1 : current_core();
    for (std::size_t i = 0; i < cores_.size(); ++i) {
      if (cores_[i] != here) continue;
      std::swap(cores_[i], free_core_);
      pin_to(workers_[i], cores_[i]);
    }
  }

  const int threads_;
  microseconds spin_ = kSpin;
  internal::TaskFn fn_ = nullptr;
  void* state_ = nullptr;
  alignas(64) std::atomic<std::uint64_t> ticket_{0};
  alignas(64) internal::WaitWord finished_;
  alignas(64) internal::WaitWord wake_;
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
  std::vector<int> cores_;  // that workers are pinned to; empty if they share
  int free_core_ = -1;
};

// Of this thread: a call from within a task runs on it alone.
thread_local bool inside_task = false;

// Marks this thread as one that runs tasks, for as long as it lives.
class InsideTask {
 public:
  ~InsideTask() { inside_task = before_; }

 private:
  const bool before_ = std::exchange(inside_task, true);
};

// The tasks of one call on an executor. Whoever comes takes the next one, so that tasks start in
// order under any schedule, and one that waits for an earlier one waits for a worker that has
// begun.
struct Dealt {
  const std::int64_t count;
  const internal::TaskFn fn;
  void* const state;
  std::atomic<std::int64_t> next{0};

  static void work(void* self, int worker) {
    Dealt& dealt = *static_cast<Dealt*>(self);
    const InsideTask inside;
    for (;;) {
      const std::int64_t task = dealt.next.fetch_add(1, std::memory_order_relaxed);
      if (task >= dealt.count) return;
      dealt.fn(dealt.state, task, worker);
    }
  }
};

void Pool::work(int worker) {
  inside_task = true;
  while (!stop_.load(std::memory_order_relaxed)) {
    const std::uint32_t seen = wake_.load();
    take_tasks(worker);
    wake_.wait_past(seen, spin_);
  }
}

// The one pool, and the turn that callers take on it. One for the process, as its cores are: two
// pools that spin against each other lose milliseconds. A host that has threads gives a context an
// Executor.
struct Shared {
  std::mutex turn;
  std::atomic<int> threads{default_threads()};
  std::unique_ptr<Pool> pool;
};

// Never destroyed: workers may outlive static destructors of other libraries that still call us.
Shared& shared() {
  static Shared* instance = new Shared;
  return *instance;
}

}  // namespace

template <class Done>
void internal::WaitWord::wait_until(const Done& done, microseconds spin) const {
  if (done(load()) || spin_until([&] { return done(load()); }, spin)) return;
  for (std::uint32_t value = load(); !done(value); value = load()) sleep_at(value);
}

void internal::WaitWord::wait_for(std::uint32_t wanted, microseconds spin) const {
  wait_until([wanted](std::uint32_t value) { return value == wanted; }, spin);
}

void internal::WaitWord::wait_past(std::uint32_t seen, microseconds spin) const {
  wait_until([seen](std::uint32_t value) { return value != seen; }, spin);
}

// Not std::atomic's wait, which in libstdc++ yields four times before it sleeps, each time for a
// slice of whoever else wants the core.
void internal::WaitWord::sleep_at(std::uint32_t value) const {
  sleepers_.fetch_add(1);
#if defined(__linux__)
  syscall(SYS_futex, &value_, FUTEX_WAIT_PRIVATE, value, nullptr);
#else
  value_.wait(value);
#endif
  sleepers_.fetch_sub(1);
}

void internal::WaitWord::wake_sleepers() {
#if defined(__linux__)
  syscall(SYS_futex, &value_, FUTEX_WAKE_PRIVATE, std::numeric_limits<int>::max());
#else
  value_.notify_all();
#endif
}

void Countdown::wait_long() const { left_.wait_for(0, kSpin); }

void internal::run_tasks(Executor* executor, std::int64_t count, int threads, TaskFn fn,
                         void* state) {
  if (count <= 0) return;
  const bool alone = inside_task || count == 1 || threads == 1;
  if (alone) {
    for (std::int64_t i = 0; i < count; ++i) fn(state, i, 0);
    return;
  }
  if (executor != nullptr) {
    Dealt dealt{count, fn, state};
    executor->run(static_cast<int>(std::min<std::int64_t>(count, threads)), &Dealt::work, &dealt);
    Dealt::work(&dealt, 0);  // what is left if it ran no worker
    return;
  }
  Shared& s = shared();
  const std::lock_guard<std::mutex> lock(s.turn);
  const InsideTask inside;
  if (s.pool == nullptr || s.pool->threads() != threads) {
    s.pool.reset();  // its threads end before others start
    s.pool = std::make_unique<Pool>(threads);
  }
  s.pool->run(count, fn, state);
}

}  // namespace graft::cpu

namespace graft {

int num_threads() { return cpu::shared().threads.load(); }

int Context::threads() const {
  if (executor_ == nullptr) return num_threads();
  const int threads = executor_->threads();
  if (threads < 1 || threads > cpu::kMostThreads) {
    throw Error(ErrorCode::kInvalidArgument, "[context] executor: expected 1 to " +
                                                 std::to_string(cpu::kMostThreads) +
                                                 " threads, got " + std::to_string(threads));
  }
  return threads;
}

void set_num_threads(int threads) {
  if (threads < 0 || threads > cpu::kMostThreads) {
    throw Error(ErrorCode::kInvalidArgument, "[set_num_threads] threads: expected 0 to " +
                                                 std::to_string(cpu::kMostThreads) + ", got " +
                                                 std::to_string(threads));
  }
  cpu::Shared& s = cpu::shared();
  const std::lock_guard<std::mutex> lock(s.turn);
  s.threads.store(threads == 0 ? cpu::default_threads() : threads);
}

}  // namespace graft
