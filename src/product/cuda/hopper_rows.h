#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/cuda/call.h"
#include "backend/cuda/device.h"
#include "graft/supports.h"
#include "product/cuda/product.h"

// Few and middling rows on Hopper (sm_90a): W goes through every multiprocessor at once, and the
// blocks of a cluster share K. hopper_rows.cu has the picture.

namespace graft::cuda {

/// Rows of y, and ranks of a pair, that a term has here at most.
inline constexpr std::int64_t kMostHopperRows = 192, kMostHopperRowsRank = 64;

/// What the plan and the kernel agree on.
namespace hopper_rows {
inline constexpr int kStep = 64;       ///< Along K.
inline constexpr int kRowBytes = 128;  ///< Of a tile of x or W in shared memory: a step.
inline constexpr int kMostSlots = 16;
inline constexpr int kBarrierBytes = 2 * 8 * kMostSlots;
inline constexpr int kPadding = 8;  ///< Elements behind a row of E or h, against bank conflicts.
/// Of the launch that makes h: rows and ranks of a block, its warps and parts of K at most, and
/// slots of a warp.
inline constexpr int kShrinkRows = 16, kShrinkRanks = 16, kShrinkWarps = 8, kMostShrinkParts = 8,
                     kShrinkSlots = 2;
}  // namespace hopper_rows

struct HopperRowsPlan {
  int tile_rows = 64;             ///< Rows of y in a tile: 64 or 128.
  int tile_columns = 64;          ///< Columns: 64 or 128.
  std::int64_t row_tiles = 0;     ///< Tiles above each other.
  std::int64_t column_tiles = 0;  ///< Tiles beside each other.
  int splits = 1;                 ///< Blocks of a cluster, which make one tile: 1, 2, 4 or 8.
  int rank_columns = 0;           ///< Columns that h has room for: 0, 16, 32 or 64.
  int box_rows = 0;               ///< Of x that a slot has room for: what there is, in eights.
  int slots = 0;                  ///< Of a block's ring.
  int slot_bytes = 0;
  std::size_t shared_bytes = 0;  ///< Of a block, all together.

  /// h is made by a launch before, in parts of K that are added up by who reads them. Without a
  /// pair there are none.
  int shrink_parts = 0;
  int shrink_warps = 0;  ///< Of a block of it: steps go round them.
  int shrink_slot_bytes = 0;
  std::size_t shrink_shared_bytes = 0;
};

/// For y (m, n) over k, with a pair of `rank`, 0 for none, whose S has elements of `shrink_bytes`.
HopperRowsPlan plan_hopper_rows(std::int64_t m, std::int64_t n, std::int64_t k, std::int64_t rank,
                                int shrink_bytes, const DeviceFacts& facts);

/// Whether a term runs here; "no" says why, and then another path has to take it.
Support hopper_rows_takes(const Term& term, const DeviceFacts& facts);

/// Bytes of workspace that `run_hopper_rows` takes.
std::size_t hopper_rows_workspace(const Term& term, const DeviceFacts& facts);

/// Runs it: y, and h where it is asked for, but no outer products. `workspace` is aligned to 256
/// and has hopper_rows_workspace bytes of any contents.
void run_hopper_rows(const char* op, const Call& call, const Term& term, std::byte* workspace);

}  // namespace graft::cuda
