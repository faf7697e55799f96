#pragma once

#include <cstdint>

namespace graft::standin {

/// Threads or threadgroups along three axes.
struct Extent {
  std::uint32_t size[3] = {1, 1, 1};
  std::uint32_t& operator[](std::size_t axis) { return size[axis]; }
  std::uint32_t operator[](std::size_t axis) const { return size[axis]; }
};

/// What a GPU thread can ask about itself; the names are Metal's.
struct Thread {
  Extent thread_position_in_grid, thread_position_in_threadgroup, threadgroup_position_in_grid;
  Extent threads_per_threadgroup, threadgroups_per_grid, threads_per_grid;
  Extent thread_index_in_threadgroup, thread_index_in_simdgroup, simdgroup_index_in_threadgroup;
  Extent simdgroups_per_threadgroup, threads_per_simdgroup;  // scalars: the first axis
};

}  // namespace graft::standin
