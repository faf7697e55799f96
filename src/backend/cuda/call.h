#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <utility>

#include "backend/cuda/device.h"
#include "graft/context.h"
#include "graft/tensor_view.h"

namespace graft::cuda {

/// How a kernel is launched.
struct Launch {
  dim3 grid = 1;
  dim3 block = 256;
  std::size_t shared_bytes = 0;  ///< Dynamic shared memory of a block.
  int cluster = 1;               ///< Blocks a cluster, along x.
  bool cooperative = false;      ///< All blocks resident at once, or none.
  /// May start while the kernel before it ends: it waits itself, with griddepcontrol.wait, before
  /// it reads or writes what others may write or read.
  bool overlaps = false;
};

/// One call of an operation on a context's device and stream: makes the device current while it
/// lives, lends workspace from the caller's allocator, and launches. Nothing in it waits for the
/// device. Every failure throws Error, `[op] ...`.
class Call {
 public:
  Call(const char* op, const Context& context);
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  const DeviceFacts& facts() const { return facts_of(place_.device); }
  cudaStream_t stream() const { return static_cast<cudaStream_t>(place_.stream); }

  /// The memory of `view`, unless it has no elements, is one that the device reaches, and aligned
  /// to its elements. Throws Error (kInvalidArgument) that names the tensor.
  void reaches(const char* tensor, const ConstTensorView& view) const;

  /// The call's only workspace: at least `bytes` bytes, aligned to 256, given back at the end of
  /// the call in the order of the stream. Throws Error (kOutOfMemory).
  std::byte* workspace(std::size_t bytes);

  /// Puts a kernel on the stream. Throws Error (kDevice) if it can't be launched.
  template <class... Params, class... Args>
  void launch(const Launch& how, void (*kernel)(Params...), Args&&... args) const {
    std::tuple<Params...> values(std::forward<Args>(args)...);
    std::apply(
        [&](auto&... value) {
          void* pointers[] = {const_cast<void*>(static_cast<const void*>(&value))..., nullptr};
          launch(how, reinterpret_cast<const void*>(kernel), pointers);
        },
        values);
  }

 private:
  void launch(const Launch& how, const void* kernel, void** arguments) const;
  void hand_over(const Launch& how, const void* kernel, void** arguments) const;
  [[noreturn]] void fail(const char* doing, cudaError_t error) const;

  const char* op_;
  const CudaPlace& place_;
  int device_before_ = 0;
  void* workspace_ = nullptr;
};

}  // namespace graft::cuda
