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

/// Most threads of a block, which has a multiprocessor to itself.
inline constexpr int kRowThreads = 1024;

/// The form of a kernel: in the deep one half as many threads have twice as many packs of a row,
/// and twice as many registers, of which addresses and the like take a smaller part. The other is
/// for rows that are too short to give a warp its packs.
constexpr int row_threads(bool deep) { return deep ? kRowThreads / 2 : kRowThreads; }
constexpr int row_packs(int packs, bool deep) { return deep ? 2 * packs : packs; }

/// Rows that are on their way to the threads of a block that has 1024 · `packs` packs of each row
/// of `inputs` matrices: as many as keep memory busy (a multiprocessor has to have some 40 KB on
/// its way), in shared memory.
constexpr int row_stages(int packs, int inputs) {
  const int fit = 208 / (packs * inputs * kPackBytes);  // of 208 KB
  return fit < 2 ? 1 : fit < 4 ? fit : 4;
}

/// What a kernel has to do.
struct RowWork {
  std::int64_t rows = 0, columns = 0;
  std::size_t element_bytes = 4;
  int packs = 1;          ///< That a thread has of each row, where it is not deep.
  int inputs = 1;         ///< Matrices that are read.
  bool in_packs = false;  ///< All rows are whole packs: `in_packs` below.
};

/// Which threads have which rows. A row belongs to `group` threads of each of `cluster` blocks;
/// thread t of them has its packs t, t + group, ... of the block's `part` columns:
///
///     block    0 (rank 0)            1 (rank 1)             2 (rank 0) ...      cluster = 2
///     row 0    [ part columns ......][ part columns ......]
///     row 1                                                 [ part columns ...
///
/// and where rows are short, a block has `groups` of them in hand side by side.
struct RowPlan {
  bool fits = false;  ///< If not, the rows are for kernels that take any.
  bool deep = false;
  int group = 32;
  int groups = 1;
  int cluster = 1;
  int part = 0;
  int blocks = 0;  ///< Each takes every (blocks / cluster · groups)-th row.
  std::size_t shared_bytes = 0;

  int threads() const { return group * groups; }
  int clusters() const { return blocks / cluster; }
};

RowPlan plan_rows(const DeviceFacts& device, const RowWork& work);

/// Whether all that are given start at an address of 16 bytes, have rows (vectors: themselves) of a
/// multiple of 16 bytes, and so also from one row to the next.
bool in_packs(std::initializer_list<ConstTensorView> views);

/// Yes if `view` is absent or of a type that row kernels take, on a device that has kernels.
Support floats_on_cuda(const char* tensor, const ConstTensorView& view);

}  // namespace graft::cuda
