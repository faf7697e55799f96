#include "metal/fiber.h"

#include <cstdint>
#include <utility>

#if !defined(__x86_64__) || !defined(__ELF__)
#error "The Metal stand-in switches stacks in x86-64 assembly, for ELF systems"
#endif

// graft_switch_stack(void** from, void* to): keeps the registers that a call must keep on the stack
// it leaves, and takes them from the one it goes to. System V ABI; some 15 ns, where swapcontext
// takes 280 for the signal mask.
asm(R"(
.text
.type graft_switch_stack, @function
graft_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size graft_switch_stack, . - graft_switch_stack
)");
extern "C" void graft_switch_stack(void** from, void* to);

namespace graft::standin {
namespace {

thread_local Fiber* starting = nullptr;

}  // namespace

void Fiber::start(std::function<void()> body) {
  if (!stack_) stack_ = std::make_unique_for_overwrite<std::byte[]>(kStackBytes);
  body_ = std::move(body);
  done_ = false;
  // As if enter() had been left by a switch: six registers, its address, and nowhere to return to.
  auto top = reinterpret_cast<std::uintptr_t>(stack_.get() + kStackBytes) / 16 * 16;
  auto* const frame = reinterpret_cast<void**>(top) - 8;
  for (int i = 0; i < 8; ++i) frame[i] = nullptr;
  frame[6] = reinterpret_cast<void*>(&Fiber::enter);
  here_ = frame;
}

void Fiber::enter() {
  Fiber& fiber = *starting;
  fiber.body_();
  fiber.done_ = true;
  fiber.yield();
}

void Fiber::resume() {
  starting = this;
  graft_switch_stack(&caller_, here_);
}

void Fiber::yield() { graft_switch_stack(&here_, caller_); }

bool Fiber::owns(const void* address) const {
  const auto* const byte = static_cast<const std::byte*>(address);
  return byte >= stack_.get() && byte < stack_.get() + kStackBytes;
}

}  // namespace graft::standin
