#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "backend/cuda/device.h"
#include "graft/supports.h"
#include "graft/tensor_view.h"

// How the rows of matrices are dealt to a GPU by the kernels that read each row once
// (row_flow.cuh).

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
/// blocks; thread t of them has packs t, t + group, ... of the block's `part` columns:
///
///     block    0 (rank 0)            1 (rank 1)             2 (rank 0) ...      cluster = 2
///     row 0    [ part columns ......][ part columns ......]
///     row 1                                                 [ part columns ...
///
/// and where rows are short, a block has `groups` of them side by side.
struct RowPlan {
  bool fits = false;  ///< If not, the rows are for kernels that take any.
  int packs = 0;      ///< That a thread has of a row, at most.
  int group = 32;
  int groups = 1;
  int cluster = 1;
  int part = 0;
  int blocks = 0;
  std::size_t shared_bytes = 0;

  constexpr int threads() const { return group * groups; }
  constexpr int clusters() const { return blocks / cluster; }
};

/// @{
/// For kernels that have a row for each team (rows.cuh): threads have up to 2 packs of short rows,
/// and up to 4, or `most_packs`, of others, in blocks of up to 512 threads.
inline constexpr int kHandThreads = 512, kFewPacks = 2, kManyPacks = 4;
RowPlan plan_rows(const DeviceFacts& device, const RowWork& work, int most_packs = kManyPacks);
/// @}

/// @{
/// For kernels that stay for all rows (row_flow.cuh), a block on each multiprocessor: a team has
/// every (clusters · groups)-th row, of `inputs` matrices, and asks for rows several ahead.
inline constexpr int kFlowThreads = 512, kFlowPacks = 2;
RowPlan plan_flow(const DeviceFacts& device, const RowWork& work, int inputs);

/// Rows on their way to a team, as many as keep memory busy, in the shared memory of a block: of
/// 227 KB of Hopper's, of 99 KB that the least of the others have.
constexpr int flow_stages(int major, int inputs) {
  const int row_bytes = kFlowThreads * kFlowPacks * kPackBytes * inputs;
  const int fit = (major == 9 ? 208 : 96) * 1024 / row_bytes;
  return fit < 4 ? fit : 4;
}
/// @}

/// Whether all that are given start at an address of 16 bytes, have rows (vectors: themselves) of a
/// multiple of 16 bytes, and so also from one row to the next.
bool in_packs(std::initializer_list<ConstTensorView> views);

/// Yes if `view` is absent or of a type that row kernels take, on a device that has kernels.
Support floats_on_cuda(const char* tensor, const ConstTensorView& view);

}  // namespace graft::cuda
