#pragma once

#include <cstddef>
#include <cstdint>

#include "graft/context.h"

namespace graft::cpu {

/// Deals out one block of scratch. What a call needs is a layout: a function that takes its parts
/// from a Scratch, one after the other, and returns them as a struct. Where the block is too small
/// it runs twice, so that sizes are said once.
class Scratch {
 public:
  Scratch() = default;  ///< Counts only; parts are null.
  Scratch(std::byte* block, std::size_t size) : block_(block), size_(size) {}

  /// Room for `count` elements of T on cache lines of their own, uninitialised; null if the block
  /// ends before.
  template <class T>
  T* take(std::int64_t count) {
    const std::size_t at = bytes_;
    bytes_ += (static_cast<std::size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return bytes_ <= size_ ? reinterpret_cast<T*>(block_ + at) : nullptr;
  }

  std::size_t bytes() const { return bytes_; }

 private:
  std::byte* block_ = nullptr;
  std::size_t size_ = 0, bytes_ = 0;
};

/// Bytes that `layout` takes.
template <class Layout>
std::size_t bytes_of(const Layout& layout) {
  Scratch count;
  layout(count);
  return count.bytes();
}

/// The parts of `layout` in the context's scratch.
template <class Layout>
auto lay_out(Context& context, const Layout& layout) {
  Scratch scratch(context.scratch(0), context.scratch_bytes());
  auto parts = layout(scratch);
  if (const std::size_t bytes = scratch.bytes(); bytes > context.scratch_bytes()) {
    scratch = Scratch(context.scratch(bytes), bytes);
    parts = layout(scratch);
  }
  return parts;
}

}  // namespace graft::cpu
