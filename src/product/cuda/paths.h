#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/cuda/call.h"
#include "backend/cuda/device.h"
#include "product/cuda/product.h"

// The kernels that a term can run on. Each path has a function that runs one term, and one that
// says what workspace that takes; `path_of` alone decides between them.

namespace graft::cuda {

enum class Path : std::uint8_t {
  kSmall,    ///< A pair alone, bound by launches: one launch for h and y.
  kGeneral,  ///< Every term; float32 for good.
};

/// The path of a term on such a device. Looks at shapes, types, strides and alignment, and at
/// nothing else, so that the same call takes the same path every time.
///
/// kSmall: no base product and no outer products, with x and y dense along their rows, rank and
/// rows within what one launch does well (fits_small). kGeneral: the rest.
Path path_of(const Term& term, const DeviceFacts& facts);

/// Whether a path makes y alone or all of the term: outer products that a path leaves are made by
/// the general one.
const char* name_of(Path path);

/// @{
/// The general path: tiles of 128 × 128 or 64 × 64 in float32, from any strides and types; h and
/// the outer products by narrow tiles, split over their depth. Takes every term.
std::size_t general_bytes(const Term& term, const DeviceFacts& facts);
void run_general(const Call& call, const Term& term, std::byte* workspace);
/// @}

/// @{
/// One launch for h and y of a pair alone. Takes no workspace.
bool fits_small(const Term& term, const DeviceFacts& facts);
void run_small(const Call& call, const Term& term);
/// @}

/// out (rows, cols), of any type, = Σ over `splits` of partials [split][rows][cols] + bias, or +=.
void sum_partials(const Call& call, const float* partials, int splits, const ConstTensorView& bias,
                  bool accumulate, const TensorView& out);

}  // namespace graft::cuda
