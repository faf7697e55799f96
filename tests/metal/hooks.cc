// What a shader's object file calls: the compiler's notes of memory accesses (the interface of
// -fsanitize=thread, whose own runtime is not linked), and the operations of metal_stdlib that need
// the machine.
#include <cstddef>
#include <cstdint>

#include "metal/machine.h"

namespace {

using graft::standin::Machine;
using graft::standin::Memory;

void note(Memory::Access access, const void* address, std::size_t bytes, const void* code) {
  Machine::running().note(access, address, bytes, code);
}

}  // namespace

#define GRAFT_HOOK extern "C" __attribute__((visibility("default")))
#define GRAFT_HOOKS_OF_SIZE(size)                                             \
  GRAFT_HOOK void __tsan_read##size(void* address) {                          \
    note(Memory::Access::kRead, address, size, __builtin_return_address(0));  \
  }                                                                           \
  GRAFT_HOOK void __tsan_write##size(void* address) {                         \
    note(Memory::Access::kWrite, address, size, __builtin_return_address(0)); \
  }                                                                           \
  GRAFT_HOOK void __tsan_unaligned_read##size(void* address) {                \
    note(Memory::Access::kRead, address, size, __builtin_return_address(0));  \
  }                                                                           \
  GRAFT_HOOK void __tsan_unaligned_write##size(void* address) {               \
    note(Memory::Access::kWrite, address, size, __builtin_return_address(0)); \
  }

GRAFT_HOOKS_OF_SIZE(1)
GRAFT_HOOKS_OF_SIZE(2)
GRAFT_HOOKS_OF_SIZE(4)
GRAFT_HOOKS_OF_SIZE(8)
GRAFT_HOOKS_OF_SIZE(16)

GRAFT_HOOK void __tsan_read_range(void* address, std::size_t bytes) {
  note(Memory::Access::kRead, address, bytes, __builtin_return_address(0));
}
GRAFT_HOOK void __tsan_write_range(void* address, std::size_t bytes) {
  note(Memory::Access::kWrite, address, bytes, __builtin_return_address(0));
}
GRAFT_HOOK void __tsan_vptr_update(void**, void*) {}
GRAFT_HOOK void __tsan_func_entry(void*) {}
GRAFT_HOOK void __tsan_func_exit() {}
GRAFT_HOOK void __tsan_init() {}

GRAFT_HOOK void graft_metal_barrier(unsigned flags, int line) {
  Machine::running().barrier(flags, line);
}
GRAFT_HOOK void graft_metal_simdgroup_barrier(unsigned flags, int line) {
  Machine::running().simdgroup_barrier(flags, line);
}
GRAFT_HOOK const void* graft_metal_exchange(const void* mine, std::size_t bytes, int line) {
  return Machine::running().exchange(mine, bytes, line);
}
GRAFT_HOOK std::uint32_t graft_metal_lanes() { return Machine::running().lanes_here(); }
GRAFT_HOOK std::uint32_t graft_metal_lane() { return Machine::running().lane(); }
GRAFT_HOOK void* graft_metal_threadgroup_array(std::size_t id, std::size_t bytes) {
  return Machine::running().threadgroup_array(id, bytes);
}
GRAFT_HOOK void graft_metal_flops(std::uint64_t count) { Machine::running().add_flops(count); }
