#pragma once

#include <gtest/gtest.h>

#include <vector>

#include "graft/tensor_view.h"

namespace graft::test {

/// The relative rounding error of one operation in `dtype`.
double epsilon(DType dtype);

/// Largest |actual − truth|; NaN if any of either is NaN where the other is not. Infinities must be
/// the same.
double max_error(const std::vector<double>& actual, const std::vector<double>& truth);

/// Every element is within `bound` of the truth. NaN and infinity are close to themselves alone.
testing::AssertionResult close(const std::vector<double>& actual, const std::vector<double>& truth,
                               double bound);

/// The earned tolerance: `actual` is at most twice as far from `truth` as `plain`, the same
/// computation from plain operations in `dtype`, plus one rounding of the largest value for each of
/// the `roundings` steps that a value passes through (a few values may all be lucky in `plain`).
testing::AssertionResult as_good_as(const std::vector<double>& actual,
                                    const std::vector<double>& plain,
                                    const std::vector<double>& truth, DType dtype,
                                    int roundings = 1);

/// The same of what is computed in float32 and rounded to `dtype` once, at the end: `plain` is of
/// float32 operations, and so are the `roundings`; each element may be rounded to `dtype` besides.
testing::AssertionResult as_good_as_float32(const std::vector<double>& actual,
                                            const std::vector<double>& plain,
                                            const std::vector<double>& truth, DType dtype,
                                            int roundings = 1);

}  // namespace graft::test
