// What the functions of graft/metal_lora.h say of a launch stays within what Metal allows.
#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <set>
#include <string>

#include "graft/error.h"
#include "graft/metal_lora.h"

namespace graft::metal {
namespace {

constexpr int kLanes = 32, kMostThreads = 1024, kMostBytes = 32 << 10;

void expect_legal(const Call& call) {
  const auto [width, height, depth] = call.threadgroup;
  EXPECT_LE(width * height * depth, kMostThreads) << call.kernel;
  EXPECT_EQ(width % kLanes, 0) << call.kernel;  // simdgroups are full: they take part in sums
  EXPECT_EQ(call.grid[0] % width, 0) << call.kernel;
  EXPECT_EQ(height * depth, 1) << call.kernel;
  EXPECT_LE(call.threadgroup_bytes, kMostBytes) << call.kernel;
  for (const int threads : call.grid) EXPECT_GT(threads, 0) << call.kernel;
  const std::string text = call.header + call.body;
  for (const char c : text) ASSERT_LT(static_cast<unsigned char>(c), 128) << call.kernel;
  std::set<std::string> names(call.inputs.begin(), call.inputs.end());
  names.insert(call.outputs.begin(), call.outputs.end());
  EXPECT_EQ(names.size(), call.inputs.size() + call.outputs.size()) << call.kernel;
  for (const std::string& name : names) {
    EXPECT_NE(call.body.find(name), std::string::npos) << call.kernel << " " << name;
  }
}

int groups(const Call& call, std::size_t axis) { return call.grid[axis] / call.threadgroup[axis]; }

int argument(const Call& call, const std::string& name) {
  for (const auto& [key, value] : call.arguments) {
    if (key == name) return std::get<int>(value);
  }
  return 1;  // a row a threadgroup
}

// A kernel for few rows makes them all, and 32 columns a threadgroup.
void expect_covered(const Call& linear, std::int64_t rows, std::int64_t columns) {
  const bool few = linear.kernel.find("_few") != std::string::npos;
  const int cols = few ? 32 : argument(linear, "COLS");
  EXPECT_GE(groups(linear, 0) * cols, columns) << linear.kernel;
  EXPECT_LT((groups(linear, 0) - 1) * cols, columns) << linear.kernel;
  EXPECT_GE(groups(linear, 1) * argument(linear, "ROWS"), rows) << linear.kernel;
  EXPECT_LT((groups(linear, 1) - 1) * argument(linear, "ROWS"), rows) << linear.kernel;
}

TEST(MetalCalls, StayWithinLimits) {
  for (const std::int64_t rows : {1, 4, 5, 7, 8, 9, 1023, 1024, 1025, 40000}) {
    for (const std::int64_t rank : {1, 8, 9, 31, 32, 33, 255, 256}) {
      for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
        for (const Drops drops : {Drops::kNothing, Drops::kInput, Drops::kOutput}) {
          const Call delta = lora_delta({rows, 100, 77, rank, dtype, dtype, dtype, drops});
          expect_legal(delta);
          EXPECT_GE(groups(delta, 0) * groups(delta, 1) * argument(delta, "ROWS"), rows);
        }
        for (const bool flag : {false, true}) {
          const Call outer = lora_outer({rows, 77, rank, dtype, flag, !flag});
          expect_legal(outer);
          EXPECT_GE(groups(outer, 0) * kLanes, 77);
          EXPECT_GE(groups(outer, 1) * 8, rank);
          const Call shrink = lora_shrink({rows, 100, rank, dtype, dtype, flag});
          expect_legal(shrink);
          EXPECT_GE(groups(shrink, 0) * groups(shrink, 1) * argument(shrink, "ROWS"), rows);
          for (const std::int64_t low : {std::int64_t{0}, rank}) {
            LoraLinear shape{rows, 100, 77, low, dtype, dtype, flag, flag, !flag && low > 0};
            shape.shrinks = shrinks_within(shape);
            expect_legal(lora_linear(shape));
            expect_covered(lora_linear(shape), rows, 77);
            shape.columns = 40000;
            expect_covered(lora_linear(shape), rows, 40000);
          }
        }
      }
    }
  }
}

// One name, one text: hosts keep what they compiled by it.
TEST(MetalCalls, NamesTellTextsApart) {
  constexpr DType f32 = DType::kFloat32;
  std::map<std::string, std::set<std::string>> texts;
  const auto add = [&](const Call& call) { texts[call.kernel].insert(call.header + call.body); };
  for (const std::int64_t rows : {1, 100, 1000}) {
    for (const Drops drops : {Drops::kNothing, Drops::kInput, Drops::kOutput}) {
      add(lora_delta({rows, 9, 9, 9, f32, f32, f32, drops}));
    }
    for (const bool dropout : {false, true}) add(lora_shrink({rows, 9, 9, f32, f32, dropout}));
    for (const bool transposed : {false, true}) {
      for (const bool bias : {false, true}) {
        for (const bool dropout : {false, true}) {
          for (const std::int64_t rank : {0, 9}) {
            if (dropout && (rank == 0 || transposed)) continue;
            LoraLinear shape{rows, 9, 9, rank, f32, f32, transposed, bias, dropout};
            add(lora_linear(shape));
            shape.shrinks = shrinks_within(shape);
            add(lora_linear(shape));
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
  // 3 ways x 3 kinds of dropout; 2 x 2; backward 2 + 4; forward in tiles 4, of few rows 6.
  EXPECT_EQ(texts.size(), 9u + 4u + 6u + 4u + 6u);
}

// h in the same launch, if the threadgroups that would each make it are few, or A is small.
TEST(MetalCalls, HIsMadeWhereLessMoves) {
  constexpr DType f32 = DType::kFloat32;
  const auto within = [](std::int64_t rows, std::int64_t in, std::int64_t out, std::int64_t rank) {
    return shrinks_within({rows, in, out, rank, f32, f32, true, false, false});
  };
  EXPECT_TRUE(within(1, 576, 576, 8));
  EXPECT_TRUE(within(1, 4096, 32, 256));  // one threadgroup: nothing is read twice
  EXPECT_FALSE(within(1, 4096, 4096, 16));
  EXPECT_FALSE(within(5, 576, 576, 8));  // not few
  EXPECT_FALSE(within(4, 32, 32, 129));  // no room in threadgroup memory
  EXPECT_FALSE(within(1, 576, 576, 0));
  EXPECT_FALSE(shrinks_within({1, 576, 576, 8, f32, f32, false, false, false}));  // dx
}

TEST(MetalCalls, SayWhyNot) {
  const auto reason = [](const LoraDelta& call) { return supports(call).reason; };
  const DType f32 = DType::kFloat32, i32 = DType::kInt32;
  EXPECT_EQ(reason({5, 5, 5, 8, f32, f32, f32, Drops::kNothing}), "");
  EXPECT_NE(reason({5, 5, 5, 257, f32, f32, f32, Drops::kNothing}).find("257"), std::string::npos);
  EXPECT_NE(reason({5, 5, 5, 0, f32, f32, f32, Drops::kNothing}), "");
  EXPECT_NE(reason({5, 5, 5, 8, f32, i32, f32, Drops::kNothing}).find("int32"), std::string::npos);
  EXPECT_NE(reason({std::int64_t{1} << 31, 5, 5, 8, f32, f32, f32, Drops::kNothing}), "");
  EXPECT_THROW(lora_delta({5, 5, 5, 300, f32, f32, f32, Drops::kNothing}), Error);
  EXPECT_NE(supports(LoraLinear{5, 5, 5, 8, f32, DType::kFloat16, true, false, false}).reason, "");
  EXPECT_EQ(supports(LoraLinear{5, 5, 5, 8, f32, DType::kBFloat16, true, false, false}).reason, "");
}

}  // namespace
}  // namespace graft::metal
