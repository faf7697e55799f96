#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "backend/cpu/small_vector.h"
#include "product/cpu/kernels.h"
#include "weight/cpu/panels.h"

namespace graft::cpu {

/// How the rows and columns of y are dealt out: row panels of near-equal height (so that no edge
/// tile is small), chunks of consecutive panels whose packed x stays in a core's cache, and where
/// rows are few or weights large, ranges of columns too.
struct Partition {
  std::int64_t m, n_panels;  // rows, and column panels of all outputs
  std::int64_t panels;       // of rows
  // Rows of a panel, m / panels rounded up, in 2⁻³¹ rows: all together are less than a row above m,
  // and none has more than ⌈m / panels⌉. The panels with a row more than others are spread: where
  // they come first, 128 rows (512 → 512, rank 8) on two threads take 5 % longer.
  std::int64_t height;
  static constexpr int kHeightBits = 31;
  std::int64_t splits = 1;      // of the columns
  bool splits_outside = false;  // all chunks of a range of columns, then the next range
  SmallVector<std::int64_t, 16> chunk_panel;  // the first panel of each chunk, and the end

  /// `row_panel_size`: 32-bit elements of a row panel, of all inputs together. `row_work`:
  /// multiply-adds of a row of all outputs. `has_weights`: not pairs alone. `weight_bytes`: of all
  /// column panels that may be dealt out in ranges.
  Partition(const Kernels& kernels, std::int64_t rows_of_y, std::int64_t row_panel_size,
            std::int64_t column_panels, std::int64_t row_work, bool has_weights,
            std::int64_t weight_bytes, int threads)
      : m(rows_of_y),
        n_panels(column_panels),
        panels(ceil_div(rows_of_y, kernels.rows)),
        height(ceil_div(m << kHeightBits, std::max<std::int64_t>(1, panels))) {
    chunk_panel.push_back(0);
    // About 128 rows a chunk; fewer where K is so large that they would leave a 1 MiB cache.
    constexpr std::int64_t kChunkRows = 140, kLeastRows = 14, kChunkBytes = 5 << 18;
    const std::int64_t panel_bytes = std::max<std::int64_t>(1, row_panel_size * 4);
    const std::int64_t most = std::clamp<std::int64_t>(
        kChunkBytes / panel_bytes, 2, std::max(2, static_cast<int>(kChunkRows / kernels.rows)));
    // Without weights to read from memory, columns are dealt out only where rows would leave
    // threads idle: each share of them takes the shrink anew.
    const bool by_rows = panels >= (has_weights ? 4 : 2) * threads;
    // Few rows: every thread packs them, and multiplies its share of the columns, unless all of
    // them take less than handing them out. A delta of one row (576 → 576, rank 8) takes 0.71 µs
    // instead of 0.89, one of 576 → 1536 the same.
    constexpr std::int64_t kLeastWork = 1 << 14;
    const bool by_columns = !by_rows && threads > 1 && m * row_work >= kLeastWork;
    if (by_columns) splits = std::clamp<std::int64_t>(n_panels, 1, threads);
    // Weights that no cache holds from one chunk to the next: ranges of them that the last one
    // does. 512 × 576 → 49152 in float32 takes 63 ms instead of 73.
    constexpr std::int64_t kStreamedBytes = 32 << 20, kRangeBytes = 8 << 20;
    if (by_rows && weight_bytes > kStreamedBytes) {
      splits = std::min(n_panels, ceil_div(weight_bytes, kRangeBytes));
      splits_outside = true;
      const std::int64_t each = ceil_div(panels, ceil_div(panels, most));
      while (chunk_panel.back() < panels) {
        chunk_panel.push_back(std::min(panels, chunk_panel.back() + each));
      }
      return;
    }
    // Many: chunks grow smaller to the end, so that threads of unequal speed end together.
    const std::int64_t least = std::min(most, ceil_div(kLeastRows, kernels.rows));
    for (std::int64_t left = panels; left > 0; left = panels - chunk_panel.back()) {
      const std::int64_t fair = threads > 1 && by_rows ? ceil_div(left, 2 * threads) : left;
      chunk_panel.push_back(chunk_panel.back() + std::min(left, std::clamp(fair, least, most)));
    }
  }

  struct Task {
    std::int64_t chunk, split;
  };
  std::int64_t tasks() const { return chunks() * splits; }
  /// Task number `index`, in the order in which they start.
  Task task(std::int64_t index) const {
    if (splits_outside) return {index % chunks(), index / chunks()};
    return {index / splits, index % splits};
  }
  std::int64_t chunks() const { return static_cast<std::int64_t>(chunk_panel.size()) - 1; }
  std::int64_t first_panel(std::int64_t chunk) const {
    return chunk_panel[static_cast<std::size_t>(chunk)];
  }
  std::int64_t panel_row(std::int64_t panel) const { return panel * height >> kHeightBits; }
  int panel_rows(std::int64_t panel) const {
    return static_cast<int>(panel_row(panel + 1) - panel_row(panel));
  }
  std::int64_t first_row(std::int64_t chunk) const { return panel_row(first_panel(chunk)); }
  std::int64_t split_panel(std::int64_t split) const { return n_panels * split / splits; }
  std::int64_t most_chunk_panels() const { return chunks() == 0 ? 0 : chunk_panel[1]; }
};

}  // namespace graft::cpu
