// What the functions of graft/metal_lora.h say of a launch stays within what Metal allows.
#include <gtest/gtest.h>

#include <cstdint>
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

TEST(MetalCalls, StayWithinLimits) {
  for (const std::int64_t rows : {1, 4, 5, 7, 8, 9, 1023, 1024, 1025, 40000}) {
    for (const std::int64_t rank : {1, 8, 9, 31, 32, 33, 255, 256}) {
      for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
        for (const Drops drops : {Drops::kNothing, Drops::kInput, Drops::kOutput}) {
          const Call delta = lora_delta({rows, 100, 77, rank, dtype, dtype, dtype, drops});
          expect_legal(delta);
          EXPECT_GE(groups(delta, 0) * argument(delta, "ROWS"), rows);
        }
        for (const bool flag : {false, true}) {
          const Call outer = lora_outer({rows, 77, rank, dtype, flag, !flag});
          expect_legal(outer);
          EXPECT_GE(groups(outer, 0) * kLanes, 77);
          EXPECT_GE(groups(outer, 1) * 8, rank);
          expect_legal(lora_shrink({rows, 100, rank, dtype, dtype, flag}));
          for (const std::int64_t low : {std::int64_t{0}, rank}) {
            const Call linear =
                lora_linear({rows, 100, 77, low, dtype, dtype, flag, flag, !flag && low > 0});
            expect_legal(linear);
            EXPECT_GE(groups(linear, 0) * 32, 77);
            EXPECT_GE(groups(linear, 1) * 32, rows);
          }
        }
      }
    }
  }
}

// One name, one text: hosts keep what they compiled by it.
TEST(MetalCalls, NamesTellTextsApart) {
  std::set<std::string> names, texts;
  for (const std::int64_t rows : {1, 100}) {
    for (const Drops drops : {Drops::kNothing, Drops::kInput, Drops::kOutput}) {
      const Call call =
          lora_delta({rows, 9, 9, 9, DType::kFloat32, DType::kFloat32, DType::kFloat32, drops});
      names.insert(call.kernel);
      texts.insert(call.body);
    }
  }
  for (const bool transposed : {false, true}) {
    for (const bool bias : {false, true}) {
      for (const bool dropout : {false, true}) {
        for (const std::int64_t rank : {0, 9}) {
          if (dropout && rank == 0) continue;
          const Call call = lora_linear(
              {9, 9, 9, rank, DType::kFloat32, DType::kFloat32, transposed, bias, dropout});
          names.insert(call.kernel);
          texts.insert(call.body);
        }
      }
    }
  }
  EXPECT_EQ(names.size(), texts.size());
  EXPECT_EQ(names.size(), 6u + 12u);
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
