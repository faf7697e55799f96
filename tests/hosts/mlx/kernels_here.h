#pragma once

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <set>
#include <string>

#include "graft/mlx/detail/metal_runner.h"
#include "graft/mlx/fusion.h"

// The tests of the host are the same wherever they run; what runs fused there is not.
namespace graft::mlx::testing {

// Calls go to Metal kernels: on a Mac, or where the stand-in executes them.
inline bool on_metal() { return detail::on_metal(mx::to_stream({})); }

// Whether this device has kernels for an op; the others are composed, and say why.
inline bool has_kernels(const std::string& op) {
  static const std::set<std::string> none_on_metal{"attention", "linear_cross_entropy", "swiglu"};
  static const std::set<std::string> none_on_cpu{"layer_norm", "softmax"};
  return (on_metal() ? none_on_metal : none_on_cpu).count(op) == 0;
}

// Everything that was counted ran fused, as far as there are kernels.
inline void expect_fused() {
  EXPECT_FALSE(fusion_report().empty());
  for (const auto& record : fusion_report()) {
    EXPECT_EQ(record.fused, has_kernels(record.op))
        << record.op << " " << name_of(record.pass) << ": " << record.reason;
  }
}

}  // namespace graft::mlx::testing
