#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "backend/cuda/device.h"
#include "graft/supports.h"
#include "graft/tensor_view.h"

// How the rows of matrices are dealt to a GPU by the kernels that read each row once.

namespace graft::cuda {

/// Bytes that a thread moves at a time.
inline constexpr int kPackBytes = 16;

/// Most threads of a block.
inline constexpr int kRowThreads = 1024;

/// What a kernel has to do.
struct RowWork {
  std::int64_t rows = 0, columns = 0;
  std::size_t element_bytes = 4;
  bool in_packs = false;  ///< All rows are whole packs: `in_packs` below.
};

/// Which threads have which rows. A row belongs to a team, `group` threads of each of `cluster`
/// blocks; a warp of them has up to `packs` · 32 packs in a row of the block's `part` columns:
///
///     block    0 (rank 0)            1 (rank 1)             2 (rank 0) ...      cluster = 2
///     row 0    [ part columns ......][ part columns ......]
///     row 1                                                 [ part columns ...
///
/// and where rows are short, a block has `groups` of them side by side.
struct RowPlan {
  bool fits = false;  ///< If not, the rows are for kernels that take any.
  int packs = 0;
  int group = 32;
  int groups = 1;
  int slots = 1;  ///< For what a group's warps tell each other: a power of 2.
  int cluster = 1;
  int part = 0;
  int blocks = 0;
  int step = 0;  ///< Rows from one of a team's to its next, where blocks stay.
  std::size_t shared_bytes = 0;

  constexpr int threads() const { return group * groups; }
  constexpr int clusters() const { return blocks / cluster; }
};

constexpr int slots_of(int group) {
  int slots = 1;
  while (slots * 32 < group) slots *= 2;
  return slots;
}

/// @{
/// For kernels that have a row for each team (rows.cuh): up to 4 packs a thread, or up to 2 where
/// rows are short, which takes fewer registers, in blocks of up to 512 threads. Where rows are
/// long, up to `most_packs`, 4 or 8, so that fewer threads wait for each other and more rows are
/// under way.
inline constexpr int kHandThreads = 512, kLongPacks = 8, kHandPacks = 4, kFewPacks = 2;
inline constexpr int kLongBytes = 8192;  // rows up to which 4 are enough
RowPlan plan_rows(const DeviceFacts& device, const RowWork& work, int most_packs = kHandPacks);
/// @}

/// @{
/// For kernels that stay for all rows (row_flow.cuh), a block on each multiprocessor: a team has
/// every (clusters · groups)-th row, of `inputs` matrices, and asks for rows several ahead.
inline constexpr int kFlowThreads = 512, kFlowPacks = 2;
/// Of the weight, as floats, behind the rows: 8 of each pack at most.
inline constexpr int kWeightBytes = kFlowThreads * kFlowPacks * 8 * 4;
RowPlan plan_flow(const DeviceFacts& device, const RowWork& work, int inputs);

/// Rows on their way to a team, in the shared memory of a block: of 227 KB of Hopper's, of 99 KB
/// that the least of the others have. Two keep memory busy; more are more to do after the last one
/// has come.
constexpr int flow_stages(int major, int inputs) {
  const int row_bytes = kFlowThreads * kFlowPacks * kPackBytes * inputs;
  const int fit = ((major == 9 ? 224 : 96) * 1024 - kWeightBytes) / row_bytes;
  return fit < 2 ? fit : 2;
}
/// @}

/// Whether all that are given start at an address of 16 bytes, have rows (vectors: themselves) of a
/// multiple of 16 bytes, and so also from one row to the next.
bool in_packs(std::initializer_list<ConstTensorView> views);

/// Yes if `view` is absent or of a type that row kernels take, on a device that has kernels.
Support floats_on_cuda(const char* tensor, const ConstTensorView& view);

}  // namespace graft::cuda
