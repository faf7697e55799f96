#pragma once

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "backend/metal/rows.h"
#include "graft/metal.h"
#include "graft/mlx/fusion.h"
#include "graft/tensor_view.h"
#include "hosts/mlx/truth.h"
#include "metal/evaluate.h"

// What the tests of operations over rows have in common.
namespace graft::standin {

using RowOp = std::function<mx::array(const std::vector<mx::array>&)>;

// Few features and many, on both sides of every change of kernel; rows that leave a threadgroup
// ragged.
inline std::vector<mx::Shape> row_shapes() {
  return {{1, 1},    {7, 1},    {13, 31},  {2, 3, 32}, {9, 33},   {3, 513},
          {4, 1000}, {2, 1025}, {1, 4096}, {2, 4097},  {1, 8209}, {211, 3}};
}

// All dtypes once for a row that is a simdgroup's and for one that is a threadgroup's: each makes
// texts of its own, which take time to compile.
inline std::vector<mx::Dtype> dtypes_for(const mx::Shape& shape) {
  if (shape.back() == 31 || shape.back() == 1000) return {mx::float32, mx::float16, mx::bfloat16};
  return {mx::float32};
}

inline std::vector<float> floats(const mx::array& array) {
  const auto v = mlx::testing::values(array);
  return {v.begin(), v.end()};
}

inline int rows_of(const mx::array& x) {
  return x.size() == 0 ? 0 : static_cast<int>(x.size()) / x.shape(-1);
}

// `data` as the rows that `like` has.
inline TensorView rows_view(std::vector<float>& data, const mx::array& like) {
  return {data.data(), DType::kFloat32, {rows_of(like), like.shape(-1)}};
}

inline TensorView vector_view(std::vector<float>& data) {
  return {data.data(), DType::kFloat32, {static_cast<std::int64_t>(data.size())}};
}

// The report says that `op` ran fused, forward and backward, and nothing else.
inline void expect_fused(const std::string& op) {
  const auto report = mlx::fusion_report();
  ASSERT_EQ(report.size(), 2u);
  EXPECT_EQ(report[0].pass, mlx::Pass::kForward);
  EXPECT_EQ(report[1].pass, mlx::Pass::kBackward);
  for (const auto& record : report) {
    EXPECT_EQ(record.op, op);
    EXPECT_TRUE(record.fused) << record.reason;
    EXPECT_EQ(record.runs, 1u);
  }
}

// For a difference of terms as large as `terms`, computed in float32 and rounded at the end: a sum
// of `count`, and what the terms themselves were rounded, may be all that is left of it.
inline void expect_difference(const mx::array& actual, const std::vector<double>& truth,
                              const std::vector<double>& terms, int count) {
  using mlx::testing::largest;
  const double unit = std::ldexp(1.0, actual.dtype() == mx::float32   ? -24
                                      : actual.dtype() == mx::float16 ? -11
                                                                      : -8);
  EXPECT_LE(
      mlx::testing::max_error(actual, truth),
      2 * unit * largest(truth) + (4 + std::sqrt(count)) * std::ldexp(1.0, -24) * largest(terms));
}

// `function` gives on Metal what it gives on the CPU.
inline void expect_same(
    const std::function<std::vector<mx::array>(const std::vector<mx::array>&)>& function,
    const std::vector<mx::array>& inputs) {
  const Evaluated run = evaluate_on_metal(function, inputs, 3);
  EXPECT_EQ(run.fault, "");
  const auto expected = function(inputs);
  ASSERT_EQ(run.outputs.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(run.outputs[i].shape(), expected[i].shape());
    const auto truth = mlx::testing::values(expected[i]);
    EXPECT_LE(mlx::testing::max_error(run.outputs[i], truth),
              2e-5 * (1 + mlx::testing::largest(truth)));
  }
}

// Gradients of `op` in its inputs, of a loss that is not linear in it.
inline std::vector<mx::array> slopes_of(const RowOp& op, const std::vector<mx::array>& inputs) {
  std::vector<int> all(inputs.size());
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int>(i);
  return mx::grad(
      [&](const std::vector<mx::array>& in) { return mx::sum(mx::square(mx::sin(op(in)))); },
      all)(inputs);
}

// Forward mode, second derivatives, and vmap along `axes` of the value and of gradients.
inline void expect_transforms_hold(const RowOp& op, const std::vector<mx::array>& inputs,
                                   const std::vector<int>& axes,
                                   const std::vector<mx::array>& tangents) {
  const auto value = [&](const Arrays& in) { return Arrays{op(in)}; };
  const auto slopes = [&](const Arrays& in) { return slopes_of(op, in); };
  const auto curve = [&](const Arrays& in) {
    // Of the gradients in the first input and in the last, which may be summed over rows.
    const auto first = [&](const Arrays& v) { return slopes_of(op, v)[0]; };
    const auto last = [&](const Arrays& v) { return slopes_of(op, v).back(); };
    Arrays both = slopes_of(first, in);
    for (const mx::array& slope : slopes_of(last, in)) both.push_back(slope);
    return both;
  };
  expect_same([&](const Arrays& in) { return mx::vmap(value, axes)(in); }, inputs);
  expect_same([&](const Arrays& in) { return mx::vmap(slopes, axes)(in); }, inputs);
  Arrays plain = inputs;  // without the batch
  for (std::size_t i = 0; i < plain.size(); ++i) {
    if (axes[i] >= 0) plain[i] = mx::take(plain[i], 0, axes[i]);
  }
  Arrays plain_tangents = tangents;
  for (std::size_t i = 0; i < plain.size(); ++i) {
    if (axes[i] >= 0) plain_tangents[i] = mx::take(tangents[i], 0, axes[i]);
  }
  expect_same([&](const Arrays& in) { return mx::jvp(value, in, plain_tangents).second; }, plain);
  expect_same(curve, plain);
}

// vmap along `axes` is one launch.
inline void expect_folded(const RowOp& op, const std::vector<mx::array>& inputs,
                          const std::vector<int>& axes) {
  const auto value = [&](const Arrays& in) { return Arrays{op(in)}; };
  const Evaluated run =
      evaluate_on_metal([&](const Arrays& in) { return mx::vmap(value, axes)(in); }, inputs);
  EXPECT_EQ(run.launched.size(), 1u);
}

// What every step of a plan has to keep to.
inline void expect_within_limits(const metal::Plan& plan) {
  for (const metal::Step& step : plan.steps) {
    EXPECT_LE(step.threadgroup[0] * step.threadgroup[1] * step.threadgroup[2], 1024);
    EXPECT_LE(step.threadgroup_bytes, 32 << 10);
    for (const int size : step.grid) EXPECT_GE(size, 1);
    for (const char c : step.kernel.text()) EXPECT_LT(static_cast<unsigned char>(c), 128);
  }
}

// Each row has a simdgroup, or a threadgroup of whole simdgroups.
inline void expect_rows_covered(const metal::Step& step, std::int64_t rows) {
  EXPECT_EQ(step.grid[1] * step.grid[2], 1);
  EXPECT_EQ(step.threadgroup[0] % 32, 0);
  const bool narrow = std::get<bool>(step.kernel.arguments.back());
  EXPECT_EQ(std::int64_t{step.grid[0]}, rows * (narrow ? 32 : step.threadgroup[0]));
}

// The steps after those of the rows: each column of each block of rows has a thread, and so has
// each of the `sums` that are made of blocks.
inline void expect_blocks_covered(const metal::Plan& plan, std::size_t sums, std::int64_t rows,
                                  std::int64_t features) {
  ASSERT_EQ(plan.steps.size(), 2 + sums);
  const metal::Step& blocks = plan.steps[1];
  EXPECT_EQ(std::int64_t{blocks.grid[0]}, features);
  EXPECT_GE(std::int64_t{blocks.grid[1]} * metal::rows_of_block(rows), rows);
  EXPECT_LT(std::int64_t{blocks.grid[1] - 1} * metal::rows_of_block(rows), rows);
  for (std::size_t i = 0; i < sums; ++i) {
    EXPECT_EQ(std::int64_t{plan.steps[2 + i].grid[0]}, features);
  }
}

// Views of no memory, as hosts hand them to metal::plan.
inline TensorView on_metal(DType dtype, std::initializer_list<std::int64_t> shape) {
  return {nullptr, dtype, shape, {DeviceType::kMetal, 0}};
}

inline void for_shapes(const std::function<void(std::int64_t, std::int64_t)>& visit) {
  constexpr std::int64_t kMost = std::numeric_limits<int>::max();
  for (const std::int64_t rows :
       {std::int64_t{1}, std::int64_t{2}, std::int64_t{7}, std::int64_t{16}, std::int64_t{17},
        std::int64_t{2048}, std::int64_t{2049}, std::int64_t{1000003}, kMost / 512, kMost / 32,
        kMost}) {
    for (const std::int64_t features :
         {std::int64_t{1}, std::int64_t{31}, std::int64_t{32}, std::int64_t{33}, std::int64_t{512},
          std::int64_t{513}, std::int64_t{1000}, std::int64_t{4096}, std::int64_t{4097},
          std::int64_t{8192}, std::int64_t{8193}, kMost}) {
      SCOPED_TRACE(::testing::Message() << rows << " x " << features);
      visit(rows, features);
    }
  }
}

}  // namespace graft::standin
