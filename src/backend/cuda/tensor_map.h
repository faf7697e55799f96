#pragma once

#include <cuda.h>

#include <cstdint>

#include "graft/tensor_view.h"

namespace graft::cuda {

/// Whether TMA reads and writes this matrix: 16-bit elements, rows dense, and the first element and
/// every row at a multiple of 16 bytes.
bool takes_tensor_map(const ConstTensorView& matrix);

/// The same of any elements.
bool has_map_rows(const ConstTensorView& matrix);

/// A dense-rowed matrix as TMA sees it: moved in boxes of `box_rows` rows of 128, 64 or 32 bytes,
/// swizzled in shared memory as tile_descriptor and, of 32 bytes, narrow_descriptor in wgmma.cuh
/// say. `row_stride` is in elements. Throws Error (kDevice).
CUtensorMap tensor_map(const char* op, const void* data, DType dtype, std::int64_t rows,
                       std::int64_t columns, std::int64_t row_stride, int box_rows,
                       int box_columns = 64);

}  // namespace graft::cuda
