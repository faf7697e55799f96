#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "backend/cpu/threads.h"
#include "graft/tensor_view.h"

namespace graft::cpu {

/// How operations on whole rows are dealt out: neighbouring rows together, so that a row can be
/// fetched while the one before it is worked on.
struct RowTasks {
  const Context& context;
  std::int64_t rows = 0;
  std::int64_t rows_a_task = 1;
  int threads = 1;  ///< How many workers there are at most: each may have scratch of its own.

  RowTasks(const Context& of, std::int64_t row_count, std::int64_t features)
      : context(of), rows(row_count), threads(of.threads()) {
    // Long enough to hide the cost of handing it out, and some for each thread.
    constexpr std::int64_t kLeast = 8192, kMost = 65536, kTasksAThread = 8;
    const std::int64_t share = rows * features / (kTasksAThread * threads);
    rows_a_task = std::max<std::int64_t>(
        1, std::clamp(share, kLeast, kMost) / std::max<std::int64_t>(1, features));
  }

  /// Calls `task(first, end, worker)` for ranges of rows that together are all.
  template <class Task>
  void run(const Task& task) const {
    const std::int64_t count = (rows + rows_a_task - 1) / rows_a_task;
    parallel_for(context, count, threads, [&](std::int64_t i, int worker) {
      task(i * rows_a_task, std::min(rows, (i + 1) * rows_a_task), worker);
    });
  }
};

/// Rows that a kernel works on together where sums over rows are wanted too.
inline constexpr int kRowsAtOnce = 4;

/// How sums over rows are dealt out: a group of rows adds up its own, and those of all groups are
/// added in order, so that the result depends on the shape alone.
struct RowGroups {
  std::int64_t rows = 0;
  std::int64_t rows_a_group = 1;  ///< A multiple of kRowsAtOnce.
  std::int64_t count = 0;

  explicit RowGroups(std::int64_t row_count) : rows(row_count) {
    // Enough rows to be worth a partial sum, few enough groups that adding them costs little.
    constexpr std::int64_t kLeastRows = 16, kMostGroups = 64;
    const std::int64_t share = (rows + kMostGroups - 1) / kMostGroups;
    rows_a_group = std::max(kLeastRows, (share + kRowsAtOnce - 1) / kRowsAtOnce * kRowsAtOnce);
    count = (rows + rows_a_group - 1) / rows_a_group;
  }

  /// Calls `task(group, first, end)` for each group's rows.
  template <class Task>
  void run(const Context& context, const Task& task) const {
    parallel_for(context, count, [&](std::int64_t group) {
      task(group, group * rows_a_group, std::min(rows, (group + 1) * rows_a_group));
    });
  }

  /// sum = the groups' partial sums, `stride` apart.
  void add(const Context& context, const float* partials, std::int64_t stride,
           const TensorView& sum) const;
};

/// Room for a row in float32 on cache lines of its own: a vector that begins in it may be read or
/// written whole.
inline std::int64_t padded(std::int64_t count) { return (count + 31) / 16 * 16; }

/// A vector of weights in float32, or of `otherwise` where there is none, and zeros up to padded().
void load_padded(const ConstTensorView& vector, float otherwise, std::int64_t count, float* to);

/// Whether to write `output` past the caches: it is too large to be found there later, and none of
/// the inputs, whose lines are there already.
inline bool streams(const ConstTensorView& output, std::initializer_list<ConstTensorView> inputs) {
  constexpr std::size_t kLeastBytes = std::size_t{16} << 20;
  for (const ConstTensorView& input : inputs) {
    if (input.data() == output.data()) return false;
  }
  return static_cast<std::size_t>(output.size()) * size_of(output.dtype()) >= kLeastBytes;
}

}  // namespace graft::cpu
