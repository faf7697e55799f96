#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/cuda/device.h"
#include "product/cuda/product.h"

// The kernels that a term can run on. `path_of` alone decides between them; run.cc has a switch for
// what each takes and for running it.

namespace graft::cuda {

class Call;

enum class Path : std::uint8_t {
  kSmall,       ///< A pair alone, bound by launches: one launch for h and y (and two for dA, dB).
  kFewRows,     ///< Few rows in half types, bound by reading W (few_rows.h).
  kFewFloats,   ///< The same in float32.
  kHopperRows,  ///< Few and middling rows on sm_90 (hopper_rows.h).
  kHopper,      ///< Half types by TMA and wgmma, on sm_90 (hopper.h).
  kAmpere,      ///< Half types on the matrix units by mma.sync (ampere.h).
  kGeneral,     ///< Every term; float32 for good.
};

/// The path of a term on such a device. Looks at shapes, types, strides and alignment alone, so
/// that the same call takes the same path every time, and never at data. The first that takes it
/// of:
///
/// kSmall: no base and no dropout; x, y and what is summed over rows of the type that is
/// multiplied, A and B too or float32; up to 16384 rows and 4096 features, in vectors of 16 bytes
/// and eights; rank 4, 8, ... 32; what several rows need fits in shared memory; and x and A are not
/// read so often that kAmpere or kGeneral is faster: 1280 rows of 4096 by 4096 are, 4096 rows of
/// 4096 by 2048 with outer products are not (small.cu, reads_too_often).
///
/// kFewRows: 1 to 16 rows by a W whose rows lie along K, in half types and vectors of 16 bytes; no
/// outer products. Where kHopperRows takes it too, 1 row with a pair, up to 4 without.
///
/// kFewFloats: the same in float32, without dropout.
///
/// kHopperRows: 1 to 192 rows; x, W and y of one half type, x and W with dense rows at 16 bytes; A
/// and B of that type or float32, of rank 64 or less; no dropout; on compute capability 9.0. Above
/// 128 rows, what kHopper does not take.
///
/// kHopper: x, W and y of one half type and dense rows at 16 bytes, y a multiple of 8 wide; with
/// dropout a multiple of 8 features, and 64 rows or more where it masks y; on compute capability
/// 9.0.
///
/// kAmpere: float16 and bfloat16 products of any shape and strides.
///
/// kGeneral: the rest.
Path path_of(const Term& term, const DeviceFacts& facts);

/// "small", "few_rows" (of any type), "hopper_rows", "hopper", "ampere" or "general".
const char* name_of(Path path);

/// The same of a term; "hopper+ampere" or "hopper_rows+ampere" where its base product runs on one
/// and the rest on the other, for a dropout that kHopper doesn't take.
const char* path_name(const Term& term, const DeviceFacts& facts);

/// @{
/// The general path: tiles of 128 × 128 or 64 × 64 in float32; h and the outer products by narrow
/// tiles, split over their depth. `workspace` is aligned to 256 and has general_bytes bytes of any
/// contents.
std::size_t general_bytes(const Term& term, const DeviceFacts& facts);
void run_general(const Call& call, const Term& term, std::byte* workspace);
/// @}

/// @{
/// 1 to 16 rows in float32 by a W whose rows lie along K. `workspace` as above.
bool few_floats_takes(const Term& term);
std::size_t few_floats_bytes(const Term& term);
void run_few_floats(const Call& call, const Term& term, std::byte* workspace);
/// @}

/// @{
/// One launch for h and y of a pair alone, and one or two for its outer products. `workspace` as
/// above, small_bytes; none without outer products.
bool fits_small(const Term& term, const DeviceFacts& facts);
std::size_t small_bytes(const Term& term, const DeviceFacts& facts);
void run_small(const Call& call, const Term& term, std::byte* workspace);
/// @}

/// out (rows, cols), of any type and strides, = Σ over splits of partials [split][rows][cols] +
/// bias, or +=. Adds in order.
void sum_partials(const Call& call, const float* partials, int splits, const ConstTensorView& bias,
                  bool accumulate, const TensorView& out);

}  // namespace graft::cuda
