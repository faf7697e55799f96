#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "backend/cuda/call.h"
#include "backend/cuda/device.h"
#include "graft/tensor_view.h"

// Outer products of many rows on Hopper by a launch of their own: dA and dB where there is no time
// for them beside the tiles of hopper.cu. hopper_outer.cuh has the picture.

namespace graft::cuda {

/// Of one launch, at most.
inline constexpr std::size_t kMostOuterJobs = 2;

/// out (rank, cols) = factor · coefficientsᵀ · matrix, summed over all rows; or of mask ∘ matrix.
struct HopperOuterJob {
  ConstTensorView matrix;              ///< (M, cols), 16-bit elements as TMA takes them.
  const void* coefficients = nullptr;  ///< (M, rank) of the same type, at 16 bytes.
  std::int64_t stride = 0;             ///< From one of its rows to the next: a multiple of eight.
  float factor = 1.0f;                 ///< Multiplies the sum, with masks also by their scale.
  TensorView out;                      ///< (rank, cols) float32, any strides; overwritten.
  /// The bits of columns that hopper_masks.cuh's kernel makes, with so many steps a row; null:
  /// none.
  const std::uint32_t* turned_masks = nullptr;
  std::int64_t mask_steps = 0;
};

/// How such products are shared out. A block sums a tile of 128 features (columns of a matrix) by
/// all ranks over a part of the rows.
struct HopperOuterLaunch {
  int width = 0;              ///< Ranks that a block sums: 64, 128 or 256.
  int splits = 1;             ///< Parts of the rows: 1, 2, 3, 4 or 8, the blocks of a cluster.
  std::int64_t clusters = 0;  ///< Tiles of all products.

  static constexpr int kFeatures = 128;
  static std::int64_t tiles_of(std::int64_t cols) { return (cols + kFeatures - 1) / kFeatures; }
};

/// For products over m rows, of so many columns each.
HopperOuterLaunch plan_hopper_outer_launch(std::int64_t m, std::span<const std::int64_t> cols,
                                           std::int64_t rank, const DeviceFacts& facts);

/// Puts one or two products of the same rows and rank (1 to 256) on the call's stream, in one
/// launch. Rows are one at least. `early`: the kernel before lets this one start when all that it
/// reads is there, so that it does not wait for that one's end, and takes the multiprocessors that
/// are idle until then.
void run_hopper_outer(const char* op, const Call& call, std::span<const HopperOuterJob> jobs,
                      bool early = false);

}  // namespace graft::cuda
