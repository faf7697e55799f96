#pragma once

#include <cstddef>
#include <functional>
#include <memory>

namespace graft::standin {

/// A function with a stack of its own, which gives way in the middle and goes on later: what runs a
/// GPU thread. All fibers of a system thread take turns on it.
class Fiber {
 public:
  /// Sets up `body` to run on the first resume(). A fiber can be started again when it is done, and
  /// keeps its stack.
  void start(std::function<void()> body);

  /// Runs until the fiber yields or is done.
  void resume();

  /// Called by the fiber: goes back to whoever resumed it.
  void yield();

  bool done() const { return done_; }

  /// Whether `address` is on this fiber's stack.
  bool owns(const void* address) const;

 private:
  static constexpr std::size_t kStackBytes = 64 << 10;
  static void enter();

  std::unique_ptr<std::byte[]> stack_;
  std::function<void()> body_;
  void* here_ = nullptr;    // this fiber's stack pointer while it waits
  void* caller_ = nullptr;  // the resumer's while it runs
  bool done_ = true;
};

}  // namespace graft::standin
