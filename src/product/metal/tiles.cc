#include "product/metal/tiles.h"

namespace graft::metal {

int groups_of(std::int64_t count, int size) { return static_cast<int>((count + size - 1) / size); }

int shrink_columns(int rank) { return rank <= 16 ? 16 : rank <= 32 ? 32 : 64; }

void set_tiles(Step& step, int rows, int cols, int down, int across, DType multiply) {
  constexpr int kThreads = 128, kDepth = 16;  // as in tile.metal
  step.kernel.arguments.insert(step.kernel.arguments.end(), {rows, cols});
  step.grid = {across * kThreads, down, 1};
  step.threadgroup = {kThreads, 1, 1};
  const int element = static_cast<int>(size_of(multiply));
  step.threadgroup_bytes = (rows + cols) * kDepth * element + kDepth * cols * 4;
}

}  // namespace graft::metal
