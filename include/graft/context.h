#pragma once

#include <cstddef>
#include <memory>

namespace graft {

/// Scratch memory for calls into the library, kept between calls and grown as needed.
///
/// A context serves one call at a time: give each calling thread its own. It holds no results, so
/// it may be destroyed as soon as a call has returned.
class Context {
 public:
  Context() = default;                               ///< Holds no memory yet.
  Context(Context&&) noexcept = default;             ///< Takes the other one's memory.
  Context& operator=(Context&&) noexcept = default;  ///< Takes the other one's memory.
  ~Context() = default;

  /// At least `bytes` bytes, aligned to 4096, with undefined contents. The block stays valid until
  /// the next call of `scratch`. Throws Error (kOutOfMemory).
  std::byte* scratch(std::size_t bytes);

  /// Bytes held now.
  std::size_t scratch_bytes() const { return capacity_; }

 private:
  struct Free {
    void operator()(std::byte* block) const;
  };

  std::unique_ptr<std::byte, Free> block_;
  std::size_t capacity_ = 0;
};

/// Threads that CPU kernels use, the caller included. All contexts share one pool; calls from
/// several threads take turns. At first: GRAFT_NUM_THREADS, or else every core this process may
/// run on.
int num_threads();

/// Sets `num_threads()`; `threads` of 0 asks for the default again. Waits for a running call.
/// The same inputs on the same number of threads give the same bits; on another number, sums over
/// rows (gradients of A and B) may round differently. Throws Error if `threads` is negative.
void set_num_threads(int threads);

}  // namespace graft
