#pragma once

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <functional>
#include <set>
#include <string>
#include <vector>

#include "graft/mlx/detail/cuda_runner.h"
#include "graft/mlx/detail/metal_runner.h"
#include "graft/mlx/fusion.h"
#include "truth.h"

// The tests of the host are the same wherever they run; what runs fused there is not.
namespace graft::mlx::testing {

// Calls go to Metal kernels: on a Mac, or where the stand-in executes them.
inline bool on_metal() { return detail::on_metal(mx::to_stream({})); }

// To CUDA kernels: where GRAFT_TEST_DEVICE asks for them.
inline bool on_cuda() { return detail::on_cuda(mx::to_stream({})); }

// To either: their kernels take float16, and weights as they lie.
inline bool on_gpu() { return on_metal() || on_cuda(); }

// Whether this device has kernels for an op; the others are composed, and say why.
inline bool has_kernels(const std::string& op) {
  static const std::set<std::string> none_on_metal{"attention", "linear_cross_entropy", "swiglu"};
  if (on_cuda()) return op != "attention";
  return !on_metal() || none_on_metal.count(op) == 0;
}

// Why an op on a tensor of this dtype has none: the CPU's are for float32 and bfloat16.
inline std::string reason_for(const char* tensor, mx::Dtype dtype) {
  if (on_gpu() || dtype != mx::float16) return "";
  return std::string(tensor) + ": float16 has no CPU kernel, float32 and bfloat16 do";
}

// Everything that was counted ran fused, as far as there are kernels.
inline void expect_fused() {
  EXPECT_FALSE(fusion_report().empty());
  for (const auto& record : fusion_report()) {
    EXPECT_EQ(record.fused, has_kernels(record.op))
        << record.op << " " << name_of(record.pass) << ": " << record.reason;
  }
}

// An operation over the rows of x, forward and backward, is counted as `op`: fused, or with the
// reason why not.
inline void expect_counted_by_dtype(const std::string& op,
                                    const std::function<mx::array(const mx::array&)>& y_of) {
  const auto expect = [&](const std::string& reason, mx::Dtype dtype) {
    const auto x = normal({3, 5}, 1, 1.0f, dtype);
    reset_fusion_report();
    const auto f = [&](const std::vector<mx::array>& in) { return std::vector{y_of(in[0])}; };
    const auto [y, dx] = mx::vjp(f, {x}, {mx::ones_like(x)});
    mx::eval(y[0], dx[0]);
    const auto report = fusion_report();
    ASSERT_EQ(report.size(), 2u);
    EXPECT_EQ(report[0].pass, Pass::kForward);
    EXPECT_EQ(report[1].pass, Pass::kBackward);
    for (const auto& record : report) {
      EXPECT_EQ(record.op, op);
      EXPECT_EQ(record.fused, reason.empty());
      EXPECT_EQ(record.reason, reason);
      EXPECT_EQ(record.runs, 1u);
    }
  };
  for (const auto dtype : {mx::float32, mx::float16, mx::bfloat16}) {
    expect(reason_for("x", dtype), dtype);
  }
  if (mx::default_device() == mx::Device::cpu) {  // GPUs have none
    expect("no kernel takes dtype float64", mx::float64);
  }
  set_fused_enabled(false);
  expect("fusion is turned off", mx::float32);
  set_fused_enabled(true);
}

}  // namespace graft::mlx::testing
