#pragma once

#include "graft/weight.h"
#include "tensors.h"

// Base weights packed for the CPU's kernels, once a tensor.
//
// A copy is known by the tensor's memory, element type, shape and strides, and held to what torch
// says of changes: its version counter. An edit through `.data`, which is how PEFT merges, changes
// none of these; so 32 of the values, spread over the tensor, are kept too and compared at each
// call, which sees every dense edit. Whoever makes a sparse edit through `.data` says so
// (`forget_weight`), or does without packing. A copy lives until it is forgotten: whenever one is
// made the op graft::watch_weight is called, by which Python forgets it when the memory is freed.

namespace graft::pytorch {

/// The packed copy of `weight` (out_features, in_features) for products in `multiply`, made now if
/// there is none that is true. `backward`: for dx too, at twice the memory. Throws Error.
Weight packed_weight(const Tensor& weight, DType multiply, bool backward);

/// Drops the packed copies of the memory at `data`, if there are any.
void forget_weight(const void* data);

/// Bytes that packed copies hold now.
std::size_t packed_bytes();

}  // namespace graft::pytorch
