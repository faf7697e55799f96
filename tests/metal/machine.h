#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "metal/fiber.h"
#include "metal/memory.h"
#include "metal/thread.h"

namespace graft::standin {

/// What a launch has moved, summed over its threads.
struct Traffic {
  std::uint64_t device_reads = 0, device_writes = 0;  ///< Bytes asked of device memory.
  std::uint64_t device_touched = 0;                   ///< The same, each byte once.
  std::uint64_t flops = 0;                            ///< Of fma() and simdgroup matrices.
  std::uint64_t threadgroup_bytes = 0;                ///< Threadgroup memory of one threadgroup.
};

/// A GPU of one core: runs a threadgroup after the other, each thread a fiber that gives way at
/// barriers and at operations of its simdgroup. In which order threads go on after those is drawn
/// from a seed. The first fault ends the launch.
class Machine {
 public:
  static constexpr std::uint32_t kLanes = 32;          ///< Of a simdgroup.
  static constexpr std::uint32_t kMostThreads = 1024;  ///< Of a threadgroup.
  static constexpr std::size_t kMostThreadgroupBytes = 32 << 10;
  static constexpr std::size_t kSlotBytes = 64;  ///< Of an exchange, a lane.

  explicit Machine(std::uint32_t seed = 0) : random_(seed) {}

  Memory& memory() { return memory_; }

  /// Runs `body` once for every thread of `grid` threads, in groups of `group` (the last ones may
  /// be smaller). Returns what went wrong, "" if nothing.
  std::string launch(const Extent& grid, const Extent& group,
                     const std::function<void(const Thread&)>& body);

  const Traffic& traffic() const { return traffic_; }

  /// @{
  /// What running threads call, through the functions in hooks.cc. `line` is for messages.
  static Machine& running();
  void barrier(unsigned flags, int line);
  void simdgroup_barrier(unsigned flags, int line);
  const void* exchange(const void* mine, std::size_t bytes, int line);
  std::uint32_t lanes_here() const;
  std::uint32_t lane() const { return current_->thread.thread_index_in_simdgroup[0]; }
  void* threadgroup_array(std::size_t id, std::size_t bytes);
  void note(Memory::Access access, const void* address, std::size_t bytes, const void* code);
  void add_flops(std::uint64_t count) { traffic_.flops += count; }
  [[noreturn]] void fault(const std::string& message);
  /// @}

 private:
  enum class Wait : std::uint8_t { kNone, kBarrier, kSimdgroup, kDone };

  struct Runner {
    Fiber fiber;
    Thread thread;
    Stamp stamps[2];  // by kind of memory
    Wait wait = Wait::kDone;
    unsigned flags = 0;
    int line = 0;
    bool exchanges = false;  // waits in exchange(), not in simdgroup_barrier()
  };
  struct Simdgroup {
    std::byte slots[2][kLanes][kSlotBytes];
    int set = 0;
    std::uint32_t lanes = 0;
  };

  void start_group(const Extent& position, const Extent& grid, const Extent& group,
                   const std::function<void(const Thread&)>& body);
  void run_group();
  bool release_barrier();
  bool release_simdgroup(std::size_t index);
  void wait_for_others(Wait what, unsigned flags, int line);
  std::string who_waits() const;

  Memory memory_;
  Traffic traffic_;
  std::mt19937 random_;
  std::deque<Runner> runners_;  // kept from group to group for their stacks
  std::size_t threads_ = 0;     // of the group that runs
  std::vector<Simdgroup> simdgroups_;
  std::vector<void*> arrays_;  // of threadgroup memory, by id
  std::size_t array_bytes_ = 0;
  std::uint32_t group_number_ = 0;
  Runner* current_ = nullptr;
  std::string fault_;
};

}  // namespace graft::standin
