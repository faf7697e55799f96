#pragma once

#include <cstddef>
#include <cstdint>

#include "graft/context.h"

namespace graft::cpu {

/// Deals out one scratch block: reserve() every part, then allocate(), then at() each part.
class ScratchLayout {
 public:
  /// Room for `count` elements of T on a cache line of their own; returns the part's place.
  template <class T>
  std::size_t reserve(std::int64_t count) {
    const std::size_t place = bytes_;
    bytes_ += (static_cast<std::size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return place;
  }

  void allocate(Context& context) { base_ = context.scratch(bytes_); }

  template <class T>
  T* at(std::size_t place) const {
    return reinterpret_cast<T*>(base_ + place);
  }

 private:
  std::size_t bytes_ = 0;
  std::byte* base_ = nullptr;
};

}  // namespace graft::cpu
