#pragma once

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <random>
#include <vector>

// Plain double-precision arithmetic to hold the host against, and ways to compare.
namespace graft::mlx::testing {

namespace mx = ::mlx::core;

// Row-major.
struct Matrix {
  std::size_t rows = 0;
  std::size_t cols = 0;
  std::vector<double> data;

  Matrix(std::size_t m, std::size_t n) : rows(m), cols(n), data(m * n, 0.0) {}
  double& at(std::size_t i, std::size_t j) { return data[i * cols + j]; }
  double at(std::size_t i, std::size_t j) const { return data[i * cols + j]; }
};

inline Matrix transpose(const Matrix& a) {
  Matrix t(a.cols, a.rows);
  for (std::size_t i = 0; i < a.rows; ++i) {
    for (std::size_t j = 0; j < a.cols; ++j) t.at(j, i) = a.at(i, j);
  }
  return t;
}

inline Matrix operator*(const Matrix& a, const Matrix& b) {
  EXPECT_EQ(a.cols, b.rows);
  Matrix c(a.rows, b.cols);
  for (std::size_t i = 0; i < a.rows; ++i) {
    for (std::size_t k = 0; k < a.cols; ++k) {
      const double left = a.at(i, k);
      for (std::size_t j = 0; j < b.cols; ++j) c.at(i, j) += left * b.at(k, j);
    }
  }
  return c;
}

inline Matrix operator*(double s, Matrix a) {
  for (double& v : a.data) v *= s;
  return a;
}

inline Matrix operator+(Matrix a, const Matrix& b) {
  EXPECT_EQ(a.data.size(), b.data.size());
  for (std::size_t i = 0; i < a.data.size(); ++i) a.data[i] += b.data[i];
  return a;
}

inline std::vector<double> values(const mx::array& x) {
  mx::array wide = mx::contiguous(mx::astype(x, mx::float32));
  wide.eval();
  const float* data = wide.data<float>();
  return {data, data + wide.size()};
}

// x flattened to rows.
inline Matrix matrix(const mx::array& x) {
  const auto cols = static_cast<std::size_t>(x.ndim() == 0 ? 1 : x.shape(-1));
  Matrix m(cols == 0 ? 0 : x.size() / cols, cols);
  m.data = values(x);
  return m;
}

// Normal, from a seed of its own: the same in every run.
inline mx::array normal(const mx::Shape& shape, std::uint32_t seed, float scale = 1.0f,
                        mx::Dtype dtype = mx::float32) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> distribution(0.0f, scale);
  std::size_t count = 1;
  for (const auto dim : shape) count *= static_cast<std::size_t>(dim);
  std::vector<float> data(count);
  for (float& v : data) v = distribution(engine);
  return mx::astype(mx::array(data.begin(), shape), dtype);
}

// Largest |actual − truth|; infinite if any actual value is NaN or there are too few or too many.
inline double max_error(const mx::array& actual, const std::vector<double>& truth) {
  const std::vector<double> got = values(actual);
  if (got.size() != truth.size()) return INFINITY;
  double worst = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double error = std::abs(got[i] - truth[i]);
    if (!(error <= worst)) worst = error;
    if (std::isnan(worst)) return INFINITY;
  }
  return worst;
}

inline double max_error(const mx::array& actual, const Matrix& truth) {
  return max_error(actual, truth.data);
}

inline double largest(const std::vector<double>& v) {
  double most = 0;
  for (const double x : v) most = std::max(most, std::abs(x));
  return most;
}

inline double root_mean_square(const std::vector<double>& v) {
  double squares = 0;
  for (const double x : v) squares += x * x;
  return v.empty() ? 0 : std::sqrt(squares / static_cast<double>(v.size()));
}

// Root mean square of actual − truth; infinite if a value is not finite or the sizes differ.
inline double rms_error(const mx::array& actual, const std::vector<double>& truth) {
  std::vector<double> errors = values(actual);
  if (errors.size() != truth.size()) return INFINITY;
  for (std::size_t i = 0; i < errors.size(); ++i) errors[i] -= truth[i];
  const double error = root_mean_square(errors);
  return std::isfinite(error) ? error : INFINITY;
}

// The tolerance is earned: at most twice the error that MLX's own ops make on the same computation
// in the same dtype, plus rounding. Root mean squares, since the largest of many errors is chance.
//
// `terms` is the length of the longest sum: added one after another, its rounding errors come to
// about √terms·u of the result (Higham and Mary, A new approach to probabilistic rounding error
// analysis, 2019). A BLAS that splits the sum does better than that; neither order is wrong.
inline void expect_as_good_as(const mx::array& fused, const mx::array& composed,
                              const std::vector<double>& truth, int terms = 4) {
  const double unit = fused.dtype() == mx::float32 ? std::ldexp(1.0, -24) : std::ldexp(1.0, -9);
  EXPECT_LE(rms_error(fused, truth),
            2 * rms_error(composed, truth) + std::sqrt(terms) * unit * root_mean_square(truth));
}
inline void expect_as_good_as(const mx::array& fused, const mx::array& composed,
                              const Matrix& truth, int terms = 4) {
  expect_as_good_as(fused, composed, truth.data, terms);
}

// For what is computed in float32 and rounded to its dtype at the end: within `roundings` of the
// largest value, and what a float32 sum of `terms` loses by chance, √terms roundings as above.
inline void expect_rounded(const mx::array& actual, const std::vector<double>& truth, int terms,
                           int roundings = 2) {
  const auto dtype = actual.dtype();
  const double unit = std::ldexp(1.0, dtype == mx::float16    ? -11
                                      : dtype == mx::bfloat16 ? -8
                                                              : -24);
  EXPECT_LE(max_error(actual, truth),
            (roundings * unit + (2 + std::sqrt(terms)) * std::ldexp(1.0, -24)) * largest(truth));
}

// d(f)/dx at `inputs[argnum]` by central differences of a scalar function, the sums in double.
inline std::vector<double> finite_differences(
    const std::function<mx::array(const std::vector<mx::array>&)>& f, std::vector<mx::array> inputs,
    std::size_t argnum, double step = 1e-2) {
  const mx::array original = inputs[argnum];
  const std::vector<double> center = values(original);
  std::vector<double> gradient(center.size());
  for (std::size_t i = 0; i < center.size(); ++i) {
    const auto shifted = [&](double by) {
      std::vector<float> data(center.begin(), center.end());
      data[i] = static_cast<float>(center[i] + by);
      inputs[argnum] = mx::array(data.begin(), original.shape());
      return std::pair{values(f(inputs))[0], static_cast<double>(data[i])};
    };
    const auto [above, x_above] = shifted(step);
    const auto [below, x_below] = shifted(-step);
    gradient[i] = (above - below) / (x_above - x_below);
  }
  return gradient;
}

}  // namespace graft::mlx::testing
