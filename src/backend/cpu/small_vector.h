#pragma once

#include <cstddef>
#include <new>
#include <type_traits>
#include <vector>

namespace graft::cpu {

/// A vector that keeps its first N elements in itself: what a short call makes takes nothing from
/// the heap. Elements move when there are more, and while the vector itself does.
template <class T, std::size_t N>
class SmallVector {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  SmallVector() {}  // NOLINT: leaves elements alone that are not there yet

  /// Appends a T as it is by default, to be filled in where it lies: a copy of what has just been
  /// written waits until that is in the cache.
  T& emplace_back() {
    if (size_ < N) return *::new (few_ + size_++) T;
    if (size_ == N) many_.assign(few_, few_ + N);
    ++size_;
    return many_.emplace_back();
  }
  void push_back(const T& value) { emplace_back() = value; }

  std::size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  T* begin() { return size_ <= N ? few_ : many_.data(); }
  const T* begin() const { return size_ <= N ? few_ : many_.data(); }
  T* end() { return begin() + size_; }
  const T* end() const { return begin() + size_; }
  T& operator[](std::size_t i) { return begin()[i]; }
  const T& operator[](std::size_t i) const { return begin()[i]; }
  T& front() { return *begin(); }
  const T& front() const { return *begin(); }
  T& back() { return end()[-1]; }
  const T& back() const { return end()[-1]; }

 private:
  std::size_t size_ = 0;
  union {
    T few_[N];
  };
  std::vector<T> many_;  // all of them, if more than N
};

}  // namespace graft::cpu
