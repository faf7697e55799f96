#pragma once

#include <cstdint>

#include "graft/metal.h"

namespace graft::metal {

inline constexpr int kTileRows = 256;  // from so many rows on: simdgroup matrices

// Threadgroups of `size` that cover `count`.
int groups_of(std::int64_t count, int size);

// Columns of h that a pass over x makes in tiles.
int shrink_columns(int rank);

// Gives the step of a kernel with tiles (tile.metal) the template arguments kRows and kCols, last,
// and a threadgroup for each of `down` x `across` tiles; `multiply` is what is multiplied.
void set_tiles(Step& step, int rows, int cols, int down, int across, DType multiply);

}  // namespace graft::metal
