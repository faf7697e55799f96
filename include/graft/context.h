#pragma once

#include <cstddef>
#include <memory>

#include "graft/export.h"
#include "graft/tensor_view.h"

namespace graft {

namespace cpu {
class RotaryTables;
}

/// A host's own threads, to run parallel work in place of Graft's pool: two pools that wait for
/// each other by spinning cost milliseconds. The kernels deal out their tasks themselves, so that
/// any schedule will do: at the same time, one after another, in any order.
class GRAFT_EXPORT Executor {
 public:
  virtual ~Executor() = default;

  /// Threads that calls divide their work for, 1 to 1024. The same inputs at the same number give
  /// the same bits, whatever `run` does with it.
  virtual int threads() const = 0;

  /// Calls `work(state, worker)` at most once for each worker in [0, workers), on threads of its
  /// choice, and returns when no call is running or to come; what the calls wrote can then be read
  /// by the caller. A call that has begun may wait for others that have begun, so each needs a
  /// thread to itself until it returns (fibers that share one won't do). Calls left out cost
  /// nothing but speed: the work goes to the others, or to the caller. `work` does not throw. `run`
  /// may, once no call is running or to come: it ends the operation, whose outputs are then
  /// undefined.
  virtual void run(int workers, void (*work)(void* state, int worker), void* state) = 0;
};

/// A kernel that is ready to be launched, for a caller that launches it itself.
struct CudaKernel {
  void* function;         ///< A CUfunction, which may use so much shared memory.
  unsigned grid[3];       ///< Blocks.
  unsigned block[3];      ///< Threads a block.
  unsigned cluster;       ///< Blocks a cluster, along x.
  unsigned shared_bytes;  ///< Dynamic shared memory of a block.
  bool cooperative;       ///< To be launched as cooperative: all blocks resident at once.
  void** arguments;       ///< As cuLaunchKernel takes them; valid until the function returns.
};

/// A CUDA device as a caller lends it: its stream, and memory from the caller's own allocator.
/// Nothing of it is owned.
struct CudaPlace {
  int device = 0;          ///< Which one, as CUDA counts them.
  void* stream = nullptr;  ///< A cudaStream_t. Kernels are put on it and not waited for.
  void* state = nullptr;   ///< Handed to the functions below.
  /// `bytes` bytes on `device`, for use in the order of `stream`; null if there are none.
  void* (*allocate)(void* state, std::size_t bytes, void* stream) = nullptr;
  /// Gives back what `allocate` gave, to be used again in the order of `stream`.
  void (*free)(void* state, void* memory, void* stream) = nullptr;
  /// The caller knows that the tensors of its calls are in the device's reach: the driver, which
  /// takes a third of a microsecond for each, is not asked.
  bool vouches = false;
  /// Null: kernels are launched on `stream`. Else they are handed to this, one after the other:
  /// each is to run when those before it, of the same call, are done. A call that gets false throws
  /// Error (kDevice).
  bool (*launch)(void* state, const CudaKernel& kernel) = nullptr;
};

/// Where calls into the library run: on which device, who runs their parallel work, and where
/// their scratch memory comes from, which is kept between calls and grown as needed, as are tables
/// of rotary embeddings. A call's tensors must be on the context's device.
///
/// A context serves one call at a time: give each calling thread its own. It holds no results, so
/// it may be destroyed as soon as a call has returned.
class GRAFT_EXPORT Context {
 public:
  Context() = default;  ///< The CPU. Holds no memory yet; runs on Graft's pool.
  /// The CPU. Holds no memory yet; runs on `executor`, which must outlive it and is not owned.
  explicit Context(Executor& executor) : executor_(&executor) {}
  /// A CUDA device. Throws Error (kUnsupported) if this build or this machine has no kernels for
  /// it.
  explicit Context(const CudaPlace& place);
  Context(Context&&) noexcept = default;             ///< Takes the other one's memory.
  Context& operator=(Context&&) noexcept = default;  ///< Takes the other one's memory.
  ~Context() = default;

  /// Where the tensors of calls must be.
  Device device() const { return device_; }

  /// What a CUDA context was made of; for kernels.
  const CudaPlace& cuda() const { return cuda_; }

  /// At least `bytes` bytes, aligned to 4096, with undefined contents. The block stays valid until
  /// the next call of `scratch`. Throws Error (kOutOfMemory).
  std::byte* scratch(std::size_t bytes);

  /// Bytes held now.
  std::size_t scratch_bytes() const { return capacity_; }

  /// Cosines and sines of rotary embeddings; for kernels.
  cpu::RotaryTables& rotary_tables();

  /// Who runs parallel work; null for Graft's pool.
  Executor* executor() const { return executor_; }

  /// Threads that a call divides its work for: the executor's, or num_threads(). Throws Error
  /// (kInvalidArgument) if the executor's are none or too many.
  int threads() const;

 private:
  struct Free {
    void operator()(std::byte* block) const;
  };

  Device device_;
  CudaPlace cuda_;
  std::unique_ptr<std::byte, Free> block_;
  std::size_t capacity_ = 0;
  std::shared_ptr<cpu::RotaryTables> rotary_tables_;  // made when they are first asked for
  Executor* executor_ = nullptr;
};

/// Threads of Graft's pool, the caller included. All contexts without an executor share it; calls
/// from several threads take turns. Its workers start when a call first needs them; if the system
/// starts no more threads, the call throws Error (kOutOfMemory) and leaves none behind. At first:
/// GRAFT_NUM_THREADS, or else every core this process may run on.
GRAFT_EXPORT int num_threads();

/// Sets `num_threads()`; `threads` of 0 asks for the default again. Waits for a running call.
/// The same inputs on the same number of threads give the same bits; on another number, sums over
/// rows (gradients of A and B) may round differently. Throws Error if `threads` is negative.
GRAFT_EXPORT void set_num_threads(int threads);

}  // namespace graft
