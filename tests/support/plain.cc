#include "support/plain.h"

#include "backend/element.h"
#include "support/tensor.h"

namespace graft::test {
namespace {

double rounded(double value, DType dtype) {
  return test::rounded(static_cast<float>(value), dtype);
}

}  // namespace

Plain Plain::of(const ConstTensorView& view, DType dtype) {
  Plain matrix(view.dim(0), view.dim(1));
  for (std::int64_t i = 0; i < matrix.rows_; ++i) {
    for (std::int64_t j = 0; j < matrix.cols_; ++j) {
      matrix.at(i, j) = rounded(load_element(view, i, j), dtype);
    }
  }
  return matrix;
}

Plain Plain::transposed() const {
  Plain result(cols_, rows_);
  for (std::int64_t i = 0; i < rows_; ++i) {
    for (std::int64_t j = 0; j < cols_; ++j) result.at(j, i) = at(i, j);
  }
  return result;
}

Plain Plain::times(const Plain& other, DType dtype) const {
  Plain result(rows_, other.cols_);
  for (std::int64_t i = 0; i < rows_; ++i) {
    for (std::int64_t j = 0; j < other.cols_; ++j) {
      float sum = 0;
      for (std::int64_t k = 0; k < cols_; ++k) {
        sum += static_cast<float>(at(i, k)) * static_cast<float>(other.at(k, j));
      }
      result.at(i, j) = rounded(sum, dtype);
    }
  }
  return result;
}

Plain Plain::plus(const Plain& other, DType dtype) const {
  Plain result = *this;
  for (std::size_t i = 0; i < values_.size(); ++i) {
    result.values_[i] = rounded(values_[i] + other.values_[i], dtype);
  }
  return result;
}

Plain Plain::scaled(double factor, DType dtype) const {
  Plain result = *this;
  for (double& value : result.values_) value = rounded(value * factor, dtype);
  return result;
}

}  // namespace graft::test
