#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/cuda/call.h"
#include "backend/cuda/device.h"
#include "graft/supports.h"
#include "product/cuda/product.h"

// A term on the matrix units of sm_80 and later (mma.sync): what multiplies in float16 or bfloat16,
// of any shape, strides and types. What has rows aligned to 16 bytes is copied asynchronously; the
// rest goes element by element to the same tiles.

namespace graft::cuda {

/// Whether such a term runs here; "no" says why.
Support ampere_takes(const Term& term);

/// Whether asynchronous copies of 16 bytes can take `view` along its axis `along`: its elements are
/// of the multiply type, dense along that axis and whole eights of them, and start at 16 bytes.
bool ampere_copies(const ConstTensorView& view, int across, int along, DType multiply);

/// What a plan depends on.
struct AmpereShape {
  std::int64_t m = 0, n = 0, k = 0;
  int rank = 0;           ///< 0: no pair.
  bool base = false;      ///< There is a W.
  bool output = false;    ///< There is a y.
  bool dropped = false;   ///< Dropout on x on its way to h.
  bool masked = false;    ///< Dropout on what the pair adds to y.
  bool elements = false;  ///< x or W can't be copied in chunks of 16 bytes.

  static AmpereShape of(const Term& term);
  /// That of h = x·S as a product of its own.
  static AmpereShape of_shrink(const Term& term);
};

/// The outer products' part of a plan.
struct AmpereShares {
  std::int64_t rows = 0;   ///< Of a share, whole 64.
  std::int64_t count = 0;  ///< Shares that the rows are cut into.
};

struct AmperePlan {
  int tile_n = 128;        ///< Columns of a tile, which has 128 rows: 128 or 256.
  std::int64_t tiles = 0;  ///< 0: no y.
  std::size_t shared_bytes = 0;
  /// Parts that K is cut into where there are too few tiles for the device; each makes a tile of
  /// its own, float32, and another launch adds them up. 1: K is whole.
  int splits = 1;
  std::int64_t split_depth = 0;  ///< K of a part; the last has the rest.
  /// Blocks that make h while the others have begun with the tiles, where the last round of tiles
  /// leaves as many idle; 0: h is made before.
  unsigned shrink_blocks = 0;
};

/// The plan of a term's tiles.
AmperePlan plan_ampere(const AmpereShape& shape, const DeviceFacts& facts);

/// How outer products over `m` rows are cut, whose blocks of 128 columns by 64 ranks are so many
/// together.
AmpereShares plan_ampere_outer(std::int64_t m, std::int64_t blocks, const DeviceFacts& facts);

/// Bytes of workspace that `run_ampere` takes.
std::size_t ampere_workspace(const Term& term, const DeviceFacts& facts);

/// Runs it: at most five launches, and two for each two outer products. `workspace` is aligned to
/// 256 and has ampere_workspace bytes of any contents.
void run_ampere(const Call& call, const Term& term, std::byte* workspace);

}  // namespace graft::cuda
