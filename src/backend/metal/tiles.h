#pragma once

#include <cstdint>
#include <string>

#include "graft/metal.h"

namespace graft::metal {

// Threadgroups of `size` that cover `count`.
int groups_of(std::int64_t count, int size);

// Declarations that a body with tiles begins with (src/backend/metal/tile.metal): left_tile,
// right_tile, strips and place, of tiles of ROWS x COLS whose operands are of type T.
extern const char* const kTileDeclarations;

// The text before it.
std::string tile_header();

// Gives `call` ROWS, COLS, and a threadgroup for each of `down` x `across` tiles; `multiply` is T.
void set_tiles(Call& call, int rows, int cols, int down, int across, DType multiply);

}  // namespace graft::metal
