#pragma once

#include <cstdint>
#include <cstring>

#include "graft/lora.h"
#include "weight/cpu/panels.h"

// The inner kernels of the fused product, once for each instruction set and multiply type;
// plan and run compose them. Packed formats ("steps" are K for float32, ⌈K/2⌉ for bfloat16 pairs):
//   column panel  of `width` columns of the product, as weights are kept (weight/cpu/panels.h)
//   row panel     x-type [step][stride]: up to `rows` rows of x side by side, so that a step needs
//                 one broadcast a row; lanes along rows serve the shrink
//   x-type        float; the panels' pair where the CPU multiplies pairs; else two floats rounded
//                 to bf16

namespace graft::cpu {

/// Which elements of a matrix dropout keeps: bit `first` + row · row_stride + col, of what the
/// kernels' `dropout_bits` wrote. Wherever that is, it need not be aligned.
struct Kept {
  const std::uint8_t* bits = nullptr;  // null: all of them, dropout being off
  std::int64_t first = 0;
  std::int64_t row_stride = 0;  // in bits

  bool some() const { return bits != nullptr; }
  Kept at(std::int64_t row, std::int64_t col) const {
    return {bits, first + row * row_stride + col, row_stride};
  }
  /// Of 32 columns from `col` on, the first in the lowest bit.
  std::uint32_t word(std::int64_t row, std::int64_t col) const {
    const auto bit = static_cast<std::uint64_t>(first + row * row_stride + col);
    std::uint64_t bytes;  // little-endian on every instruction set that there are kernels for
    std::memcpy(&bytes, bits + bit / 8, sizeof(bytes));
    return static_cast<std::uint32_t>(bytes >> bit % 8);
  }
};
/// Bytes past the last that `dropout_bits` may write, and Kept::word read.
inline constexpr std::int64_t kKeptSlack = 8;

/// Rows that one call of `outer` sums over at most.
inline constexpr std::int64_t kMostOuterRows = 256;

/// One register tile of y: up to `rows` × `width`.
struct TileArgs {
  int rows = 0;
  int cols = 0;                   // valid columns, at most `width`
  const void* x = nullptr;        // row panel
  const void* w = nullptr;        // column panel
  std::int64_t steps = 0;         // of x and w
  std::int64_t ahead = 0;         // bytes from w to what is fetched into the cache meanwhile,
  std::int64_t ahead_stride = 0;  // and from step to step: see read_ahead
  const void* h = nullptr;        // low-rank row panel, scaling inside
  const void* b = nullptr;        // low-rank column panel
  std::int64_t b_stride = 0;      // elements (32-bit) from a step of b to the next
  std::int64_t low_steps = 0;     // of h and b
  Kept kept;                      // masks the low-rank part; from the tile's first element on
  const float* bias = nullptr;    // `width` floats, or null
  const float* start = nullptr;   // what the sums start from, [row][width], or null
  void* y = nullptr;              // first element of the tile
  std::int64_t y_stride = 0;      // elements from a row to the next
  bool y_bfloat16 = false;
  bool accumulate = false;  // y += instead of y =
};

/// Has tile number `index` of the `count` that share a column panel fetch its part of the next one,
/// `panel_bytes` on; else the first tile of every panel waits for memory. None after the last.
inline void read_ahead(TileArgs& tile, bool last, std::int64_t panel_bytes, std::int64_t index,
                       std::int64_t count) {
  tile.ahead_stride = last ? 0 : (64 + count - 1) / count;
  tile.ahead = last ? 0 : panel_bytes + index * tile.ahead_stride * tile.steps;
}

/// What multiplies by column panels of one format; a tile is as wide as a panel.
struct Kernels : PanelFormat {
  int rows;         // most rows of a tile
  int stride;       // rows that a row panel has room for
  int x_per_step;   // 32-bit x-type elements a row and step: 2 where pairs are kept as two floats
  int shrink_cols;  // columns of A that one pass of the shrink takes,
  int wide_shrink_cols;  // or takes where more than shrink_cols are left
  int shrink_panels;     // most row panels that one call of `shrink` takes

  /// Packs rows [0, rows) × [0, k) of `x` into a row panel of `stride` rows.
  void (*pack_rows)(const Source& x, int rows, std::int64_t k, void* panel);
  /// Packs A (k × rank) for `shrink`, [group of columns][step][column of the group], a group being
  /// what one pass takes, the last one padded: `packed_a_size` 32-bit elements. Groups of
  /// wide_shrink_cols can be packed one by one.
  void (*pack_a)(const Source& a, std::int64_t k, std::int64_t rank, void* packed);
  std::int64_t (*packed_a_size)(std::int64_t k, std::int64_t rank);
  /// h [rank][stride] = (row panel)ᵀ · A in float32, unscaled, of one panel or more that lie one
  /// after the other, as each h does, `h_panel_size` apart.
  void (*shrink)(const void* x_panels, int panels, std::int64_t k, const void* packed_a,
                 std::int64_t rank, float* h);
  /// The same h straight from up to `rows` rows of float32 x with dense rows; float32 kernels only.
  void (*row_shrink)(const Source& x, int rows, std::int64_t k, const void* packed_a,
                     std::int64_t rank, float* h);
  /// Turns `scaling`·h into the x-type panel that enters a tile's low-rank steps.
  void (*low_rank_panel)(const float* h, std::int64_t rank, float scaling, void* panel);
  void (*tile)(const TileArgs& args);
  /// out [rank][ld] (columns [0, cols)) = coefficientsᵀ (rank × m) · x (m × cols), overwritten.
  /// Coefficients are (m, rank) with row stride `rank`; rows of x are dense; m is at most
  /// kMostOuterRows.
  void (*outer)(const float* coefficients, std::int64_t rank, const Source& x, std::int64_t m,
                std::int64_t cols, float* out, std::int64_t ld);
  /// A byte for each of `count` counters from dropout.offset + `first` on, 1 where the field is
  /// kept, the first field in the lowest bit. May write kKeptSlack bytes more.
  void (*dropout_bits)(const Dropout& dropout, std::uint64_t first, std::int64_t count,
                       std::uint8_t* bits);
  /// Copies a row panel, 0 for what is not kept, whatever x holds; nothing is scaled.
  void (*drop_panel)(const void* panel, int rows, std::int64_t k, const Kept& kept, void* dropped);
  /// The same from rows of x to float32 out [rows][cols].
  void (*drop_rows)(const Source& x, std::int64_t rows, std::int64_t cols, const Kept& kept,
                    float* out);
  /// to [cols][to_stride] = scaling · (from [rows][from_stride])ᵀ.
  void (*transpose)(const float* from, std::int64_t from_stride, std::int64_t rows,
                    std::int64_t cols, float scaling, float* to, std::int64_t to_stride);
  /// to += from, `count` floats each, which don't overlap.
  void (*add)(const float* from, std::int64_t count, float* to);

  /// 32-bit elements of a row panel.
  std::int64_t row_panel_size(std::int64_t k) const { return steps(k) * stride * x_per_step; }
  /// Floats of a panel's h: whole groups of columns.
  std::int64_t h_panel_size(std::int64_t rank) const {
    return (rank + wide_shrink_cols - 1) / wide_shrink_cols * wide_shrink_cols * stride;
  }
};

/// The kernels for products in `dtype` (kFloat32 or kBFloat16) on the instruction set in use.
const Kernels& kernels_for(DType dtype);

/// kernels_for(kBFloat16) where the CPU has bfloat16 dot products.
const Kernels& bf16_dot_kernels();

}  // namespace graft::cpu
