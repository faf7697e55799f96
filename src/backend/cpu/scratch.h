#pragma once

#include <cstddef>
#include <cstdint>

#include "graft/context.h"

namespace graft::cpu {

/// Deals out one block of scratch. What a call needs is a layout: a function that takes its parts
/// from a Scratch, one after the other, and returns them as a struct. It runs twice, without a
/// block to count bytes, and then with one, so that sizes are said once.
class Scratch {
 public:
  Scratch() = default;  ///< Counts only; parts are null.
  explicit Scratch(std::byte* block) : block_(block) {}

  /// Room for `count` elements of T on cache lines of their own, uninitialised.
  template <class T>
  T* take(std::int64_t count) {
    std::byte* const place = block_ != nullptr ? block_ + bytes_ : nullptr;
    bytes_ += (static_cast<std::size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return reinterpret_cast<T*>(place);
  }

  std::size_t bytes() const { return bytes_; }

 private:
  std::byte* block_ = nullptr;
  std::size_t bytes_ = 0;
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
  Scratch scratch(context.scratch(bytes_of(layout)));
  return layout(scratch);
}

}  // namespace graft::cpu
