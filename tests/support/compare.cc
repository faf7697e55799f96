#include "support/compare.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace graft::test {

namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

double distance(double a, double b) {
  if (std::isnan(a) && std::isnan(b)) return 0;
  if (std::isinf(a) && a == b) return 0;
  if (!std::isfinite(a) || !std::isfinite(b)) return kNan;
  return std::abs(a - b);
}

}  // namespace

double epsilon(DType dtype) {
  switch (dtype) {
    case DType::kBFloat16:
      return std::ldexp(1.0, -8);
    case DType::kFloat16:
      return std::ldexp(1.0, -11);
    default:
      return std::ldexp(1.0, -24);
  }
}

double max_error(const std::vector<double>& actual, const std::vector<double>& truth) {
  if (actual.size() != truth.size()) return kNan;
  double largest = 0;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    const double d = distance(actual[i], truth[i]);
    if (std::isnan(d)) return kNan;
    largest = std::max(largest, d);
  }
  return largest;
}

testing::AssertionResult close(const std::vector<double>& actual, const std::vector<double>& truth,
                               double bound) {
  if (actual.size() != truth.size()) {
    return testing::AssertionFailure() << actual.size() << " elements, expected " << truth.size();
  }
  for (std::size_t i = 0; i < actual.size(); ++i) {
    // Not `>`: a NaN bound or distance must fail.
    if (!(distance(actual[i], truth[i]) <= bound)) {
      return testing::AssertionFailure() << "element " << i << ": " << actual[i] << ", expected "
                                         << truth[i] << " within " << bound;
    }
  }
  return testing::AssertionSuccess();
}

namespace {

double largest_of(const std::vector<double>& values) {
  double largest = 0;
  for (const double value : values) {
    if (std::isfinite(value)) largest = std::max(largest, std::abs(value));
  }
  return largest;
}

}  // namespace

testing::AssertionResult as_good_as(const std::vector<double>& actual,
                                    const std::vector<double>& plain,
                                    const std::vector<double>& truth, DType dtype, int roundings) {
  return close(actual, truth,
               2 * max_error(plain, truth) + roundings * epsilon(dtype) * largest_of(truth));
}

testing::AssertionResult as_good_as_float32(const std::vector<double>& actual,
                                            const std::vector<double>& plain,
                                            const std::vector<double>& truth, DType dtype,
                                            int roundings) {
  if (actual.size() != truth.size()) {
    return testing::AssertionFailure() << actual.size() << " elements, expected " << truth.size();
  }
  const double computed =
      2 * max_error(plain, truth) + roundings * epsilon(DType::kFloat32) * largest_of(truth);
  const double stored = dtype == DType::kFloat32 ? 0 : epsilon(dtype);
  for (std::size_t i = 0; i < actual.size(); ++i) {
    const double size = std::isfinite(truth[i]) ? std::abs(truth[i]) : 0;
    const auto result = close({actual[i]}, {truth[i]}, computed + stored * (size + computed));
    if (!result) return testing::AssertionFailure() << i << ": " << result.message();
  }
  return testing::AssertionSuccess();
}

}  // namespace graft::test
