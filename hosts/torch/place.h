#pragma once

#include <string>

#include "graft/context.h"
#include "graft/lora.h"
#include "tensors.h"

// What differs between the two libraries, which are otherwise compiled from the same files: the one
// of the CPU (place_cpu.cc) and the one of CUDA (place_cuda.cc).

namespace graft::pytorch {

/// Where a call on `x` runs: the calling thread's context, on torch's threads or on torch's current
/// stream of x's device with memory from torch's allocator. Good until the thread asks again.
Context& context_of(const Tensor& x);

/// A weight for a call that multiplies in `multiply`: on the CPU and with `pack` its packed copy,
/// made once (packed_weight.cc); else the tensor itself, or a copy of it in that type. `backward`:
/// for dx too.
Weight weight_of(const Tensor& weight, DType multiply, bool pack, bool backward);

/// A line for each operation, direction and element type on such a device: "lora_linear forward
/// float32 yes", or "no" and the reason.
std::string capability_lines(Device device);

/// Dropout with the seed and the offset at `rng` (2) int64, which the CPU reads here and CUDA when
/// the kernel runs. Throws Error if `rng` is not such a tensor on x's device, or absent with p > 0.
Dropout dropout_of(double p, const std::optional<Tensor>& rng, const Tensor& x);

}  // namespace graft::pytorch
