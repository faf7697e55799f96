#pragma once

#include <array>
#include <cstddef>

#include "graft/supports.h"

namespace graft::cuda {

/// Of one process; CUDA itself counts up to fewer.
inline constexpr int kMostDevices = 64;

/// What calls are planned for. A plain value, so that plans can be tested for any GPU.
struct DeviceFacts {
  int major = 0, minor = 0;      ///< Compute capability.
  int multiprocessors = 0;       ///< That run blocks side by side.
  std::size_t shared_bytes = 0;  ///< Shared memory that one block can have.
  std::size_t l2_bytes = 0;      ///< The cache that all of them share.
  /// Clusters of as many blocks as the index says, up to 8, each block with all of a
  /// multiprocessor's shared memory, that run side by side: of two, fewer than half the
  /// multiprocessors where some have no neighbour, as on a part of a GPU. 0: not known, or none.
  std::array<int, 9> clusters_of{};
};

/// Whether there are kernels for such a device, which is called cuda:`index` in a "no".
Support supports_facts(int index, const DeviceFacts& facts);

/// Whether kernels run on the device `index`, as CUDA counts them; "no" says why.
Support supports_device(int index);

/// DeviceFacts::clusters_of of a device and a number of blocks.
int count_clusters(int index, std::size_t shared_bytes, int blocks);

/// Facts of a device that is supported. Asked for once, then kept: they never change, but for
/// PlannedAs.
const DeviceFacts& facts_of(int index);

/// While it lives, calls on a device are planned as for another: so tests and benchmarks run on one
/// GPU the kernels that others get. Not while calls are being made.
class PlannedAs {
 public:
  PlannedAs(int index, const DeviceFacts& facts);
  ~PlannedAs();
  PlannedAs(const PlannedAs&) = delete;
  PlannedAs& operator=(const PlannedAs&) = delete;

 private:
  int index_;
  DeviceFacts own_;
};

}  // namespace graft::cuda
