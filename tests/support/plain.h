#pragma once

#include <cstdint>
#include <vector>

#include "graft/tensor_view.h"

namespace graft::test {

/// Matrices for computations composed of plain operations: what a fused kernel's error is held
/// against. Operands and results are rounded to a dtype, sums accumulate in float32.
class Plain {
 public:
  Plain(std::int64_t rows, std::int64_t cols)
      : rows_(rows), cols_(cols), values_(size(rows, cols)) {}

  /// A view's values, rounded to `dtype`.
  static Plain of(const ConstTensorView& view, DType dtype);

  Plain transposed() const;
  /// this · other, each result rounded to `dtype`.
  Plain times(const Plain& other, DType dtype) const;
  Plain plus(const Plain& other, DType dtype) const;
  Plain scaled(double factor, DType dtype) const;

  double& at(std::int64_t row, std::int64_t col) {
    return values_[size(row, cols_) + size(col, 1)];
  }
  double at(std::int64_t row, std::int64_t col) const {
    return values_[size(row, cols_) + size(col, 1)];
  }
  std::int64_t rows() const { return rows_; }
  std::int64_t cols() const { return cols_; }
  const std::vector<double>& values() const { return values_; }

 private:
  static std::size_t size(std::int64_t a, std::int64_t b) {
    return static_cast<std::size_t>(a * b);
  }

  std::int64_t rows_, cols_;
  std::vector<double> values_;
};

}  // namespace graft::test
