// What docs/metal.md promises of launches and bytes, on one small shape.
#include <gtest/gtest.h>

#include "graft/mlx/lora.h"
#include "metal/measure.h"
#include "metal/operations.h"
#include "metal/unfused.h"

namespace graft::standin {
namespace {

namespace mx = ::mlx::core;

constexpr Problem kSmall{1, 32, 512, 512, 8};

// One launch for three, about half of the bytes, and x·A is made once: anew for every thread of a
// row it would be a multiple of the FLOPs.
TEST(MetalCosts, TheDeltaIsOneLaunch) {
  const Operation& delta = operation("lora_delta");
  const Sequence unfused = delta.unfused(kSmall);
  const Cost cost = measure(delta, kSmall, false).forward;
  EXPECT_EQ(unfused.launches(), 3u);
  EXPECT_EQ(cost.launches, 1u);
  EXPECT_LT(static_cast<double>(cost.bytes), 0.6 * unfused.bytes());
  EXPECT_GE(static_cast<double>(cost.flops), unfused.least_flops);
  EXPECT_LE(static_cast<double>(cost.flops), 2 * unfused.least_flops);
}

TEST(MetalCosts, NothingMovesMoreThanItsSteps) {
  constexpr double kSizesAndScalars = 64;  // which kernels read from memory, too
  for (const Operation& one : operations()) {
    SCOPED_TRACE(one.name);
    const Costs costs = measure(one, kSmall, true);
    const auto check = [&](const Cost& cost, const Sequence& unfused) {
      if (cost.kernels == 0) return;  // composed
      EXPECT_LE(cost.launches, unfused.launches());
      EXPECT_LE(static_cast<double>(cost.bytes), unfused.bytes() + kSizesAndScalars);
    };
    check(costs.forward, one.unfused(kSmall));
    check(costs.backward, one.unfused_backward(kSmall));
  }
}

// By hand: x and y have 6 and 8 elements, A 6, B 8, h 4.
TEST(MetalCosts, UnfusedStepsReadAndWriteOnce) {
  const Problem p{1, 2, 3, 4, 2};
  const Sequence delta = unfused_lora_delta(p);
  EXPECT_EQ(delta.steps, (std::vector<double>{4 * (6 + 6 + 4), 4 * (4 + 8 + 8), 4 * (8 + 8)}));
  EXPECT_EQ(delta.least_flops, 2 * 2 * (3 * 2 + 2 * 4));
  EXPECT_EQ(unfused_lora_linear(p).bytes(), delta.bytes() + 4 * (6 + 12 + 8) + 4 * (8 + 8 + 8));
}

// A backward pass has its own launches, not those of forward, whose outputs it needs.
TEST(MetalCosts, DirectionsAreToldApart) {
  const Operation& delta = operation("lora_delta");
  const Cost alone = measure(delta, kSmall, false).forward;
  const Costs both = measure(delta, kSmall, true);
  EXPECT_EQ(both.forward.launches, alone.launches);
  EXPECT_EQ(both.forward.bytes, alone.bytes);
  EXPECT_GE(both.backward.kernels, 1u);
  EXPECT_GE(static_cast<double>(both.backward.flops), delta.unfused_backward(kSmall).least_flops);
}

// What MLX launches so that a kernel gets dense rows is not hidden.
TEST(MetalCosts, CopiesCount) {
  Operation transposed = operation("lora_delta");
  transposed.forward = [](const Operation::Arrays& in) {
    const mx::array x = mx::transpose(mx::reshape(in[0], {512, 32}));
    return Operation::Arrays{mlx::lora_forward_fused(x, in[1], in[2], 2.0f)};
  };
  const Cost dense = measure(operation("lora_delta"), kSmall, false).forward;
  const Cost copied = measure(transposed, kSmall, false).forward;
  EXPECT_EQ(copied.kernels, dense.kernels);
  EXPECT_EQ(copied.launches, dense.launches + 1);
  EXPECT_EQ(copied.bytes, dense.bytes + 2 * 4 * 32 * 512);
}

// Kernels read A and B in any strides: PEFT's order costs no copy, nor does a gradient.
TEST(MetalCosts, AdaptersAreNotCopied) {
  Operation peft = operation("lora_delta");
  peft.forward = [](const Operation::Arrays& in) {
    const auto a = mx::transpose(mx::reshape(in[1], {8, 512}));
    const auto b = mx::transpose(mx::reshape(in[2], {512, 8}));
    return Operation::Arrays{mlx::lora_forward_fused(in[0], a, b, 2.0f)};
  };
  EXPECT_EQ(measure(peft, kSmall, false).forward.launches, 1u);
  for (const char* name : {"lora_delta", "lora_linear"}) {
    const Cost backward = measure(operation(name), kSmall, true).backward;
    EXPECT_EQ(backward.launches, backward.kernels) << name;
  }
}

}  // namespace
}  // namespace graft::standin
