#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "graft/tensor_view.h"

namespace graft::test {

/// How a test tensor lies in memory.
struct Layout {
  std::int64_t offset = 0;  ///< Elements before the first one: 1 misaligns every vector load.
  std::int64_t gap = 0;     ///< Unused elements after each run of the innermost axis.
  std::vector<int> order;   ///< Axes from outermost to innermost; empty for row-major.
};

/// A tensor that owns its memory, with sentinels before, after and in its gaps.
class Tensor {
 public:
  Tensor() = default;
  Tensor(DType dtype, std::vector<std::int64_t> shape, Layout layout = {});

  /// Normally distributed with standard deviation `scale`; the same for the same seed.
  Tensor& fill_random(std::uint32_t seed, double scale = 1.0);
  Tensor& fill(double value);

  TensorView view() const;
  operator ConstTensorView() const { return view(); }  // NOLINT: a tensor is its own view
  operator TensorView() const { return view(); }       // NOLINT

  std::int64_t size() const { return view().size(); }
  /// Elements in row-major order, whatever the layout.
  double get(std::int64_t index) const;
  void set(std::int64_t index, double value);  ///< Rounded to the dtype.
  std::vector<double> values() const;

  /// The same values in dense memory of `dtype`.
  Tensor as(DType dtype) const;

  /// Fails, naming the place, if anything outside the elements was written.
  testing::AssertionResult guarded() const;

  const std::vector<std::byte>& bytes() const { return memory_; }

 private:
  std::int64_t offset_of(std::int64_t index) const;  // in elements
  // One element, given the view of all: making a view takes longer than that.
  double load(const TensorView& v, std::int64_t index) const;
  void store(const TensorView& v, std::int64_t index, double value);

  DType dtype_ = DType::kFloat32;
  std::vector<std::int64_t> shape_, strides_;
  std::int64_t offset_ = 0;
  mutable std::vector<std::byte> memory_;
};

/// `value` as a tensor of `dtype` would keep it.
float rounded(float value, DType dtype);

/// Rows [first, first + count) of a matrix, as far as it has them.
TensorView rows_of(const Tensor& matrix, std::int64_t first, std::int64_t count);

}  // namespace graft::test
