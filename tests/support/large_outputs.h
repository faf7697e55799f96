#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <utility>

#include "support/isas.h"
#include "support/tensor.h"

namespace graft::test {

/// A large output is written past the caches, from any address; a few rows at a time are not. The
/// bits are the same. `make(dtype, rows, features, layout)` makes a case, whose outputs are `y` and
/// `dx`; `whole(context, case)` runs it, and `part(context, case, rows_of)` some of its rows, which
/// `rows_of(tensor)` gives.
template <class Make, class Whole, class Part>
void expect_same_large_outputs(const Make& make, const Whole& whole, const Part& part) {
  constexpr std::int64_t kPartRows = 100;
  for (const auto& [dtype, m] : {std::pair{DType::kFloat32, 1031}, {DType::kBFloat16, 2063}}) {
    auto large = make(dtype, m, 4099, Layout{.offset = 1, .gap = 2, .order = {}});
    const auto few = large;
    on_each_isa([&, rows = m] {
      large.y.fill(-7), large.dx.fill(-7);
      Context context;
      whole(context, large);
      for (std::int64_t row = 0; row < rows; row += kPartRows) {
        part(context, few, [&](const Tensor& tensor) { return rows_of(tensor, row, kPartRows); });
      }
      EXPECT_TRUE(large.y.bytes() == few.y.bytes());
      EXPECT_TRUE(large.dx.bytes() == few.dx.bytes());
    });
    EXPECT_TRUE(large.y.guarded());
    EXPECT_TRUE(large.dx.guarded());
  }
}

}  // namespace graft::test
