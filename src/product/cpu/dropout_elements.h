#pragma once

#include <cstdint>

#include "graft/lora.h"
#include "product/cpu/kernels.h"
#include "weight/cpu/panels.h"

namespace graft::cpu {

/// Rows [row, row + rows) × columns [col, col + cols) of an (M, n) matrix that dropout is on, and
/// how their bits lie. Whole rows are one stretch of counters. Else each row has its own, and lies
/// where its first bit has the place in a byte that its element has in a counter: for that, rows
/// are n % 8 bits and whole bytes apart.
struct DropoutElements {
  std::int64_t row = 0, rows = 0, n = 0, col = 0, cols = 0;

  std::int64_t bytes() const { return ceil_div(7 + rows * row_stride(), 8) + kKeptSlack; }
  Kept kept(const std::uint8_t* bits) const { return {bits, first() % 8, row_stride()}; }

  /// Has `dropout` write which of them are kept to the `bytes()` at `bits`.
  Kept keep(const Kernels& kernels, const Dropout& dropout, std::uint8_t* bits) const {
    const auto fill = [&](std::int64_t element, std::int64_t count, std::uint8_t* to) {
      kernels.dropout_bits(dropout, static_cast<std::uint64_t>(element / 8),
                           ceil_div(element % 8 + count, 8), to);
    };
    if (cols == n) {
      fill(first(), rows * n, bits);
    } else {
      for (std::int64_t i = 0; i < rows; ++i) {
        fill(first() + i * n, cols, bits + (first() % 8 + i * row_stride()) / 8);
      }
    }
    return kept(bits);
  }

 private:
  std::int64_t first() const { return row * n + col; }
  std::int64_t row_stride() const { return cols == n ? n : ceil_div(7 + cols, 8) * 8 + n % 8; }
};

}  // namespace graft::cpu
