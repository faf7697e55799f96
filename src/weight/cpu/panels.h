#pragma once

#include <cstdint>

#include "graft/context.h"
#include "graft/tensor_view.h"

// How a weight lies packed for the CPU's register tiles, for each multiply type on each instruction
// set. "Steps" are K for float32, ⌈K/2⌉ for bfloat16, which comes in pairs:
//   column panel  w-type [step][width]: `width` columns of the product (rows of W) side by side
//   w-type        float, or the 32-bit pair (bf16 at k, bf16 at k+1)

namespace graft::cpu {

/// A matrix to read: `rows` × `cols` are the caller's to know.
struct Source {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;  // kFloat32 or kBFloat16
  std::int64_t row_stride = 0;    // in elements
  std::int64_t col_stride = 0;
  std::int64_t ahead = 0;  // bytes from a row to what packing it fetches into the cache meanwhile

  static Source of(const ConstTensorView& matrix) {
    return {matrix.data(), matrix.dtype(), matrix.stride(0), matrix.stride(1), 0};
  }
  std::int64_t row_bytes() const { return row_stride * static_cast<std::int64_t>(size_of(dtype)); }
  Source transposed() const { return {data, dtype, col_stride, row_stride, 0}; }
  Source at(std::int64_t row, std::int64_t col) const {
    const std::int64_t offset = row * row_stride + col * col_stride;
    return {static_cast<const char*>(data) + offset * static_cast<std::int64_t>(size_of(dtype)),
            dtype, row_stride, col_stride, 0};
  }
};

/// ⌈a / b⌉ of counts: how many panels, steps or chunks of b hold a.
inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

struct PanelFormat {
  int width;       // columns of a panel
  int k_per_step;  // 1, or 2 for pairs
  bool bfloat16;   // of pairs
  /// Packs rows [0, cols) × [0, k) of `w` (a row of it is a column of the product).
  void (*pack_columns)(const Source& w, int cols, std::int64_t k, void* panel);

  std::int64_t steps(std::int64_t k) const { return (k + k_per_step - 1) / k_per_step; }
  /// 32-bit elements of a column panel.
  std::int64_t column_panel_size(std::int64_t k) const { return steps(k) * width; }
};

/// The format for products in `dtype` (kFloat32 or kBFloat16) on the instruction set in use.
PanelFormat panel_format(DType dtype);

/// panel_format(kBFloat16) where the CPU has bfloat16 dot products.
PanelFormat bf16_dot_panels();

/// Packs all columns of a product into column panels, [⌈n / width⌉][steps][width], on the context's
/// threads. Row j of `w` (n × k) is column j of the product.
void pack_panels(const Context& context, const PanelFormat& format, const Source& w, std::int64_t n,
                 std::int64_t k, std::uint32_t* panels);

/// Panel `panel` of those alone.
void pack_panel(const PanelFormat& format, const Source& w, std::int64_t n, std::int64_t k,
                std::int64_t panel, std::uint32_t* panels);

/// 32-bit elements that pack_panels writes.
std::int64_t packed_panels_size(const PanelFormat& format, std::int64_t n, std::int64_t k);

}  // namespace graft::cpu
