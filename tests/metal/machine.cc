#include "metal/machine.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <numeric>

namespace graft::standin {
namespace {

thread_local Machine* the_running = nullptr;

// mem_flags, as metal_stdlib numbers them.
constexpr unsigned kDeviceFlag = 1, kThreadgroupFlag = 2;

unsigned flag_of(int kind) {
  return static_cast<Memory::Kind>(kind) == Memory::Kind::kDevice ? kDeviceFlag : kThreadgroupFlag;
}

std::uint32_t count(const Extent& extent) { return extent[0] * extent[1] * extent[2]; }

Extent split(std::uint32_t index, const Extent& extent) {
  return {{index % extent[0], index / extent[0] % extent[1], index / extent[0] / extent[1]}};
}

// "shader.so+0x1234", for addr2line; what code that was.
std::string place_of(const void* code) {
  Dl_info info;
  if (dladdr(code, &info) == 0 || info.dli_fname == nullptr) return "";
  char offset[32];
  std::snprintf(offset, sizeof(offset), "%#zx",
                static_cast<std::size_t>(static_cast<const char*>(code) -
                                         static_cast<const char*>(info.dli_fbase)) -
                    1);
  return std::string(info.dli_fname) + " " + offset;
}

}  // namespace

Machine& Machine::running() {
  if (the_running == nullptr) std::abort();  // a shader runs outside of launch()
  return *the_running;
}

std::string Machine::launch(const Extent& grid, const Extent& group,
                            const std::function<void(const Thread&)>& body) {
  fault_.clear();
  traffic_ = {};
  group_number_ = 0;
  if (count(grid) == 0) return "";
  if (count(group) == 0 || count(group) > kMostThreads) {
    return "a threadgroup of " + std::to_string(count(group)) + " threads, of at most 1024";
  }
  the_running = this;
  Extent groups;
  for (std::size_t i = 0; i < 3; ++i) groups[i] = (grid[i] + group[i] - 1) / group[i];
  for (std::uint32_t i = 0; i < count(groups) && fault_.empty(); ++i) {
    start_group(split(i, groups), grid, group, body);
    run_group();
    memory_.release(Memory::Kind::kThreadgroup);
  }
  the_running = nullptr;
  current_ = nullptr;
  traffic_.device_touched = memory_.touched();
  return fault_;
}

void Machine::start_group(const Extent& position, const Extent& grid, const Extent& group,
                          const std::function<void(const Thread&)>& body) {
  ++group_number_;
  arrays_.clear();
  array_bytes_ = 0;
  Extent here, groups;
  for (std::size_t i = 0; i < 3; ++i) {
    here[i] = std::min(group[i], grid[i] - position[i] * group[i]);
    groups[i] = (grid[i] + group[i] - 1) / group[i];
  }
  threads_ = count(here);
  while (runners_.size() < threads_) runners_.emplace_back();
  simdgroups_.resize((threads_ + kLanes - 1) / kLanes);
  for (Simdgroup& simdgroup : simdgroups_) simdgroup.lanes = 0;
  for (std::uint32_t i = 0; i < threads_; ++i) {
    Runner& runner = runners_[i];
    Thread& thread = runner.thread;
    thread.thread_position_in_threadgroup = split(i, here);
    thread.threadgroup_position_in_grid = position;
    for (std::size_t k = 0; k < 3; ++k) {
      thread.thread_position_in_grid[k] =
          position[k] * group[k] + thread.thread_position_in_threadgroup[k];
    }
    thread.threads_per_threadgroup = here;
    thread.threadgroups_per_grid = groups;
    thread.threads_per_grid = grid;
    thread.thread_index_in_threadgroup = {{i}};
    thread.thread_index_in_simdgroup = {{i % kLanes}};
    thread.simdgroup_index_in_threadgroup = {{i / kLanes}};
    thread.simdgroups_per_threadgroup = {{static_cast<std::uint32_t>(simdgroups_.size())}};
    thread.threads_per_simdgroup = {{kLanes}};
    ++simdgroups_[i / kLanes].lanes;
    for (Stamp& stamp : runner.stamps) stamp = {group_number_, i, 0, 0};
    runner.wait = Wait::kNone;
    runner.fiber.start([&runner, &body] {
      body(runner.thread);
      runner.wait = Wait::kDone;
    });
  }
}

void Machine::run_group() {
  std::vector<std::size_t> order(threads_);
  std::iota(order.begin(), order.end(), std::size_t{0});
  const auto is_done = [&](std::size_t i) { return runners_[i].wait == Wait::kDone; };
  while (!std::all_of(order.begin(), order.end(), is_done)) {
    std::shuffle(order.begin(), order.end(), random_);
    bool moved = false;
    for (const std::size_t i : order) {
      if (runners_[i].wait != Wait::kNone) continue;
      current_ = &runners_[i];
      current_->fiber.resume();
      moved = true;
      if (!fault_.empty()) return;
    }
    moved |= release_barrier();
    for (std::size_t i = 0; i < simdgroups_.size(); ++i) moved |= release_simdgroup(i);
    if (!moved) {
      fault_ = "divergent: nobody can go on; " + who_waits();
      return;
    }
  }
}

// Lets the threadgroup go on when all of it has come to one barrier.
bool Machine::release_barrier() {
  for (std::size_t i = 0; i < threads_; ++i) {
    const Runner& runner = runners_[i];
    if (runner.wait != Wait::kBarrier || runner.line != runners_[0].line) return false;
  }
  for (std::size_t i = 0; i < threads_; ++i) {
    Runner& runner = runners_[i];
    runner.wait = Wait::kNone;
    for (int kind = 0; kind < 2; ++kind) {
      if ((runner.flags & flag_of(kind)) != 0) ++runner.stamps[kind].epoch;
    }
  }
  return true;
}

// The same for a simdgroup.
bool Machine::release_simdgroup(std::size_t index) {
  const std::size_t first = index * kLanes, end = first + simdgroups_[index].lanes;
  for (std::size_t i = first; i < end; ++i) {
    const Runner& runner = runners_[i];
    if (runner.wait != Wait::kSimdgroup || runner.line != runners_[first].line) return false;
  }
  if (runners_[first].exchanges) simdgroups_[index].set ^= 1;
  for (std::size_t i = first; i < end; ++i) {
    Runner& runner = runners_[i];
    runner.wait = Wait::kNone;
    for (int kind = 0; kind < 2; ++kind) {
      if ((runner.flags & flag_of(kind)) != 0) ++runner.stamps[kind].simd_epoch;
    }
  }
  return true;
}

// "64 threads returned, 64 wait at line 33".
std::string Machine::who_waits() const {
  std::map<std::string, int> counts;
  for (std::size_t i = 0; i < threads_; ++i) {
    const Runner& runner = runners_[i];
    const std::string line = std::to_string(runner.line);
    ++counts[runner.wait == Wait::kDone      ? "returned"
             : runner.wait == Wait::kBarrier ? "wait at the barrier of line " + line
                                             : "wait for their simdgroup at line " + line];
  }
  std::string text;
  for (const auto& [what, threads] : counts) {
    text += (text.empty() ? "" : ", ") + std::to_string(threads) + " " + what;
  }
  return text;
}

void Machine::wait_for_others(Wait what, unsigned flags, int line) {
  current_->wait = what;
  current_->flags = flags;
  current_->line = line;
  current_->fiber.yield();
}

void Machine::barrier(unsigned flags, int line) { wait_for_others(Wait::kBarrier, flags, line); }

void Machine::simdgroup_barrier(unsigned flags, int line) {
  current_->exchanges = false;
  wait_for_others(Wait::kSimdgroup, flags, line);
}

// The slots alternate, so that nobody overwrites what a slower lane has still to read.
const void* Machine::exchange(const void* mine, std::size_t bytes, int line) {
  Runner& me = *current_;
  Simdgroup& simdgroup = simdgroups_[me.thread.simdgroup_index_in_threadgroup[0]];
  const int set = simdgroup.set;
  if (bytes > kSlotBytes) fault("an exchange of " + std::to_string(bytes) + " bytes a lane");
  std::memcpy(simdgroup.slots[set][me.thread.thread_index_in_simdgroup[0]], mine, bytes);
  me.exchanges = true;
  wait_for_others(Wait::kSimdgroup, 0, line);
  return simdgroup.slots[set];
}

std::uint32_t Machine::lanes_here() const {
  return simdgroups_[current_->thread.simdgroup_index_in_threadgroup[0]].lanes;
}

// The first thread that comes to the array's declaration makes it, for all of the threadgroup.
void* Machine::threadgroup_array(std::size_t id, std::size_t bytes) {
  if (arrays_.size() <= id) arrays_.resize(id + 1);
  if (arrays_[id] == nullptr) {
    array_bytes_ += (bytes + 15) / 16 * 16;
    traffic_.threadgroup_bytes = std::max<std::uint64_t>(traffic_.threadgroup_bytes, array_bytes_);
    if (array_bytes_ > kMostThreadgroupBytes) {
      fault("threadgroup memory: " + std::to_string(array_bytes_) + " bytes, of at most 32768");
    }
    arrays_[id] = memory_.allocate(Memory::Kind::kThreadgroup, bytes,
                                   "threadgroup array " + std::to_string(id), false, false);
  }
  return arrays_[id];
}

void Machine::note(Memory::Access access, const void* address, std::size_t bytes,
                   const void* code) {
  if (!memory_.contains(address)) {
    if (current_->fiber.owns(address)) return;
    // A table of constants lies in the shader's own file.
    Dl_info data, text;
    if (access == Memory::Access::kRead && dladdr(address, &data) != 0 &&
        dladdr(code, &text) != 0 && data.dli_fbase == text.dli_fbase) {
      return;
    }
    fault("out of bounds: an address that is in no buffer; " + place_of(code));
  }
  const Memory::Kind kind = memory_.kind_of(address);
  if (kind == Memory::Kind::kDevice) {
    (access == Memory::Access::kRead ? traffic_.device_reads : traffic_.device_writes) += bytes;
  }
  const std::string wrong =
      memory_.note(access, address, bytes, current_->stamps[static_cast<int>(kind)]);
  if (!wrong.empty()) fault(wrong + "; " + place_of(code));
}

// The thread never goes on: launch() ends when it sees the fault.
void Machine::fault(const std::string& message) {
  fault_ = message;
  for (;;) current_->fiber.yield();
}

}  // namespace graft::standin
