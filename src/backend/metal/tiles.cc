#include "backend/metal/tiles.h"

#include "backend/metal/shaders.h"

namespace graft::metal {

int groups_of(std::int64_t count, int size) { return static_cast<int>((count + size - 1) / size); }

const char* const kTileDeclarations =
    "threadgroup T left_tile[ROWS * 16];\n"
    "threadgroup T right_tile[16 * COLS];\n"
    "threadgroup float strips[16 * COLS];\n"
    "const TilePlace place = {threadgroup_position_in_grid.y * ROWS,\n"
    "                         threadgroup_position_in_grid.x * COLS,\n"
    "                         thread_index_in_threadgroup, simdgroup_index_in_threadgroup,\n"
    "                         thread_index_in_simdgroup};\n";

std::string tile_header() {
  return "#include <metal_simdgroup_matrix>\n" + std::string(shaders::kPhilox) + shaders::kView +
         shaders::kTile;
}

void set_tiles(Call& call, int rows, int cols, int down, int across, DType multiply) {
  constexpr int kThreads = 128, kDepth = 16;  // as in tile.metal
  call.arguments.push_back({"ROWS", rows});
  call.arguments.push_back({"COLS", cols});
  call.grid = {across * kThreads, down, 1};
  call.threadgroup = {kThreads, 1, 1};
  const int element = static_cast<int>(size_of(multiply));
  call.threadgroup_bytes = (rows + cols) * kDepth * element + kDepth * cols * 4;
}

}  // namespace graft::metal
