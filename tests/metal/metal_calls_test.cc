// What plans of products say of launches stays within what Metal allows.
#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "graft/error.h"
#include "graft/linear.h"
#include "graft/lora.h"
#include "graft/metal.h"
#include "product/metal/product.h"

namespace graft::metal {
namespace {

constexpr int kLanes = 32, kMostThreads = 1024, kMostBytes = 32 << 10;

TensorView matrix(std::int64_t rows, std::int64_t cols, DType dtype = DType::kFloat32) {
  return {nullptr, dtype, {rows, cols}, {DeviceType::kMetal, 0}};
}

// All plans of a pair and a base weight of these sizes.
struct Calls {
  LoraDeltaForward delta;
  LoraDeltaBackward delta_backward;
  LoraLinearForward linear;
  LoraLinearBackward linear_backward;
  LinearForward base;
  LinearBackward base_backward;

  Calls(std::int64_t rows, std::int64_t in, std::int64_t out, std::int64_t rank, DType dtype,
        bool dropout, bool bias) {
    const TensorView x = matrix(rows, in, dtype), y = matrix(rows, out, dtype);
    const TensorView h = matrix(rows, rank), da = matrix(in, rank), db = matrix(rank, out);
    const Weight w = ConstTensorView(matrix(out, in, dtype));
    const Adapter adapter{matrix(in, rank, dtype), matrix(rank, out, dtype), 2.0f};
    const Dropout drop{dropout ? 0.1f : 0.0f, 0, 0};
    const ConstTensorView b =
        bias ? ConstTensorView(nullptr, dtype, {out}, {DeviceType::kMetal, 0}) : ConstTensorView();
    delta = {x, adapter, drop, false, y, h};
    delta_backward = {y, x, h, adapter, drop, x, da, db};
    linear = {x, w, b, adapter, drop, y, h};
    linear_backward = {y, x, h, w, adapter, drop, x, da, db};
    base = {x, w, b, y};
    base_backward = {y, w, x};
  }

  std::vector<Plan> plans() const {
    return {plan(delta),           plan(delta_backward), plan(linear),
            plan(linear_backward), plan(base),           plan(base_backward)};
  }
};

// A step's operands are those that there are, and each kernel binds as many as its text says.
void expect_operands(const Step& step, const Plan& plan) {
  for (const auto* operands : {&step.reads, &step.writes}) {
    for (const Operand& operand : *operands) {
      EXPECT_GE(operand.index, 0);
      if (operand.of != Operand::Of::kTemporaries) continue;
      EXPECT_LT(static_cast<std::size_t>(operand.index), plan.temporaries.size());
    }
  }
  for (const Operand& operand : step.writes) EXPECT_NE(operand.of, Operand::Of::kInputs);
  const std::string text = step.kernel.text();
  const auto kernel = text.find("void " + step.kernel.function + "(");
  ASSERT_NE(kernel, std::string::npos);
  const std::string after = text.substr(kernel, text.find(") {", kernel) - kernel);
  const std::size_t buffers = step.reads.size() + step.writes.size() + 1;
  EXPECT_NE(after.find("[[buffer(" + std::to_string(buffers - 1) + ")]]"), std::string::npos);
  EXPECT_EQ(after.find("[[buffer(" + std::to_string(buffers) + ")]]"), std::string::npos);
}

void expect_legal(const Step& step, const Plan& plan) {
  const auto [width, height, depth] = step.threadgroup;
  const std::string& name = step.kernel.function;
  EXPECT_LE(width * height * depth, kMostThreads) << name;
  EXPECT_EQ(width % kLanes, 0) << name;  // simdgroups are full: they take part in sums
  EXPECT_EQ(step.grid[0] % width, 0) << name;
  EXPECT_EQ(height * depth, 1) << name;
  EXPECT_LE(step.threadgroup_bytes, kMostBytes) << name;
  for (const int threads : step.grid) EXPECT_GT(threads, 0) << name;
  for (const char c : step.kernel.text()) ASSERT_LT(static_cast<unsigned char>(c), 128) << name;
  expect_operands(step, plan);
}

int groups(const Step& step, std::size_t axis) { return step.grid[axis] / step.threadgroup[axis]; }

// Rows and columns of y that a threadgroup makes.
void expect_covered(const Step& step, std::int64_t rows, std::int64_t columns) {
  const bool few = step.kernel.function.find("few") != std::string::npos;
  const auto& arguments = step.kernel.arguments;
  const auto last = [&](std::size_t i) { return std::get<int>(arguments[arguments.size() - i]); };
  const std::int64_t across = few ? 32 : last(1), down = few ? rows : last(2);
  EXPECT_GE(groups(step, 0) * across, columns);
  EXPECT_LT((groups(step, 0) - 1) * across, columns);
  EXPECT_GE(groups(step, 1) * down, rows);
  EXPECT_LT((groups(step, 1) - 1) * down, rows);
}

TEST(MetalCalls, StayWithinLimits) {
  for (const std::int64_t rows : {1, 4, 5, 7, 8, 9, 1023, 1024, 1025, 40000}) {
    for (const std::int64_t rank : {1, 8, 9, 31, 32, 33, 255, 256}) {
      for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
        for (const bool flag : {false, true}) {
          SCOPED_TRACE(::testing::Message() << rows << " rows, rank " << rank << " " << flag);
          const Calls calls(rows, 100, 77, rank, dtype, flag, flag);
          for (const Plan& plan : calls.plans()) {
            EXPECT_FALSE(plan.steps.empty());
            for (const Step& step : plan.steps) expect_legal(step, plan);
          }
          expect_covered(plan(calls.linear).steps.back(), rows, 77);
          expect_covered(plan(calls.linear_backward).steps[1], rows, 100);
          expect_covered(plan(calls.base).steps.back(), rows, 77);
          const Calls wide(rows, 100, 40000, rank, dtype, flag, flag);
          expect_covered(plan(wide.linear).steps.back(), rows, 40000);
        }
      }
    }
  }
}

// One name, one text: hosts keep what they compiled by it.
TEST(MetalCalls, NamesTellTextsApart) {
  std::map<std::string, std::set<std::string>> texts;
  for (const std::int64_t rows : {1, 100, 1000}) {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
      for (const bool dropout : {false, true}) {
        for (const bool bias : {false, true}) {
          for (const Plan& plan : Calls(rows, 9, 9, 9, dtype, dropout, bias).plans()) {
            for (const Step& step : plan.steps) {
              texts[step.kernel.name()].insert(step.kernel.text());
            }
          }
        }
      }
    }
  }
  std::set<std::string> all;
  for (const auto& [name, mine] : texts) {
    EXPECT_EQ(mine.size(), 1u) << name;
    all.insert(mine.begin(), mine.end());
  }
  EXPECT_EQ(all.size(), texts.size());
}

// h in the same launch, if the threadgroups that would each make it are few, or A is small.
TEST(MetalCalls, HIsMadeWhereLessMoves) {
  EXPECT_TRUE(shrinks_within(1, 576, 576, 8));
  EXPECT_TRUE(shrinks_within(1, 4096, 32, 256));  // one threadgroup: nothing is read twice
  EXPECT_FALSE(shrinks_within(1, 4096, 4096, 16));
  EXPECT_FALSE(shrinks_within(5, 576, 576, 8));  // not few
  EXPECT_FALSE(shrinks_within(4, 32, 32, 129));  // no room in threadgroup memory
  const auto steps = [](std::int64_t rows, bool dropout) {
    return plan(Calls(rows, 576, 576, 8, DType::kFloat32, dropout, false).linear).steps.size();
  };
  EXPECT_EQ(steps(1, false), 1u);
  EXPECT_EQ(steps(1, true), 2u);
  EXPECT_EQ(steps(5, false), 2u);
}

// Only what is asked for is launched; what is not given and made anyway goes to temporaries.
TEST(MetalCalls, WhatIsNotAskedForIsNotLaunched) {
  Calls calls(5, 9, 7, 3, DType::kFloat32, false, false);
  EXPECT_EQ(plan(calls.delta_backward).steps.size(), 3u);   // dx and g, da, db
  EXPECT_EQ(plan(calls.linear_backward).steps.size(), 4u);  // g, dx, da, db
  calls.delta_backward.dx = calls.linear_backward.dx = {};
  EXPECT_EQ(plan(calls.delta_backward).steps.size(), 3u);  // g, da, db
  EXPECT_EQ(plan(calls.linear_backward).steps.size(), 3u);
  calls.delta_backward.da = calls.linear_backward.da = {};
  EXPECT_EQ(plan(calls.delta_backward).steps.size(), 1u);
  EXPECT_EQ(plan(calls.linear_backward).steps.size(), 1u);
  EXPECT_TRUE(plan(calls.delta).temporaries.empty());
  calls.delta.h = {};
  ASSERT_EQ(plan(calls.delta).temporaries.size(), 1u);
  EXPECT_EQ(plan(calls.delta).temporaries[0].shape, (std::vector<std::int64_t>{5, 3}));
}

// Inputs are counted as the params declare them: here the counters of dropout come last.
TEST(MetalCalls, InputsAreCountedInTheirOrder) {
  for (const bool bias : {false, true}) {
    const Plan linear = plan(Calls(5, 9, 7, 3, DType::kFloat32, true, bias).linear);
    ASSERT_EQ(linear.steps.size(), 2u);
    std::vector<int> reads;
    for (const Operand& operand : linear.steps[0].reads) reads.push_back(operand.index);
    // x, W, [bias], A, B, seed, offset.
    const int a = bias ? 3 : 2;
    EXPECT_EQ(reads, (std::vector<int>{0, a, a + 2, a + 3}));
  }
}

TEST(MetalCalls, SayWhyNot) {
  const auto calls = [](std::int64_t rows, std::int64_t rank, DType dtype) {
    return Calls(rows, 5, 5, rank, dtype, false, false);
  };
  const DType f32 = DType::kFloat32;
  EXPECT_EQ(supports(calls(5, 8, f32).delta).reason, "");
  EXPECT_NE(supports(calls(5, 257, f32).delta).reason.find("257"), std::string::npos);
  EXPECT_FALSE(supports(calls(5, 0, f32).linear));
  EXPECT_NE(supports(calls(5, 8, DType::kInt32).delta).reason.find("int32"), std::string::npos);
  EXPECT_FALSE(supports(calls(std::int64_t{1} << 31, 8, f32).base));
  EXPECT_THROW(plan(calls(5, 300, f32).delta), Error);
  LoraDeltaForward adds = calls(5, 8, f32).delta;
  adds.accumulate = true;
  EXPECT_EQ(supports(adds).reason, "Metal kernels overwrite y");
  const std::int64_t shape[] = {5, 5}, strides[] = {7, 1};
  LinearForward gaps = calls(5, 8, f32).base;
  gaps.x = ConstTensorView(nullptr, f32, shape, strides, {DeviceType::kMetal, 0});
  EXPECT_EQ(supports(gaps).reason, "x: Metal kernels take no gaps between rows");
  // A base in float16 multiplies in x's type.
  LinearForward half = calls(5, 8, f32).base;
  half.weight = ConstTensorView(matrix(5, 5, DType::kFloat16));
  EXPECT_EQ(supports(half).reason, "");
  EXPECT_EQ(plan(half).steps[0].kernel.arguments[0], Kernel::Argument(f32));
  // What the core itself cannot run says so.
  Context context;
  EXPECT_THROW(linear_forward(context, calls(5, 8, f32).base), Error);
}

}  // namespace
}  // namespace graft::metal
