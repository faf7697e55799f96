#pragma once

#include <gtest/gtest.h>

#include <cstdint>

#include "support/tensor.h"

namespace graft::test {

/// The sum of the products of two tensors' elements: a loss whose gradient in `y` is `dy`.
inline double dot(const Tensor& y, const Tensor& dy) {
  double sum = 0;
  for (std::int64_t i = 0; i < y.size(); ++i) sum += y.get(i) * dy.get(i);
  return sum;
}

/// `gradient` holds, within `bound`, the slopes of `loss()` in the elements of `input`, by central
/// differences of `step`.
template <class Loss>
void expect_slopes(const Loss& loss, Tensor& input, const Tensor& gradient, double step,
                   double bound) {
  for (std::int64_t i = 0; i < input.size(); ++i) {
    const double at = input.get(i);
    double value[2], point[2];
    for (const int side : {0, 1}) {
      input.set(i, at + (side == 0 ? -step : step));
      point[side] = input.get(i);
      value[side] = loss();
    }
    input.set(i, at);
    EXPECT_NEAR((value[1] - value[0]) / (point[1] - point[0]), gradient.get(i), bound);
  }
}

}  // namespace graft::test
