#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "backend/cpu/threads.h"
#include "graft/tensor_view.h"

namespace graft::cpu {

/// Elements of one task of an elementwise operation: long enough to hide the cost of handing it out
/// (0.1 µs), short enough to share a small matrix.
inline constexpr std::int64_t kSpanElements = 8192;

/// Whether the rows of every present matrix follow each other without gaps.
inline bool without_gaps(std::initializer_list<ConstTensorView> matrices) {
  for (const ConstTensorView& m : matrices) {
    if (m.present() && m.dim(0) > 1 && m.stride(0) != m.dim(1)) return false;
  }
  return true;
}

/// The address of an element of a matrix whose rows are dense; null if the matrix is absent.
template <class T>
const T* element(const ConstTensorView& matrix, std::int64_t row, std::int64_t col) {
  return matrix.present() ? matrix.data_as<T>() + row * matrix.stride(0) + col : nullptr;
}

template <class T>
T* element(const TensorView& matrix, std::int64_t row, std::int64_t col) {
  return const_cast<T*>(element<T>(static_cast<const ConstTensorView&>(matrix), row, col));
}

/// Calls `span(row, col, count)` for pieces of rows that together cover (rows, cols), on all
/// threads of the context. Matrices without gaps are one long row to it.
template <class Span>
void for_each_span(const Context& context, std::int64_t rows, std::int64_t cols, bool one_row,
                   Span&& span) {
  if (rows == 0 || cols == 0) return;
  if (one_row) {
    cols *= rows;
    rows = 1;
  }
  const std::int64_t pieces = (cols + kSpanElements - 1) / kSpanElements;  // of a row
  const std::int64_t rows_a_task = std::max<std::int64_t>(1, kSpanElements / cols);
  const std::int64_t groups = (rows + rows_a_task - 1) / rows_a_task;
  parallel_for(context, groups * pieces, [&](std::int64_t task) {
    const std::int64_t first = task / pieces * rows_a_task;
    const std::int64_t col = task % pieces * kSpanElements;
    const std::int64_t count = std::min(kSpanElements, cols - col);
    for (std::int64_t row = first; row < std::min(rows, first + rows_a_task); ++row) {
      span(row, col, count);
    }
  });
}

}  // namespace graft::cpu
