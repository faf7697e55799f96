#include "graft/mlx/fusion.h"

#include <algorithm>
#include <string>

#include "graft/mlx/linear_cross_entropy.h"
#include "graft/mlx/lora.h"
#include "graft/mlx/swiglu.h"
#include "kernels_here.h"
#include "truth.h"

namespace graft::mlx {
namespace {

using testing::max_error;
using testing::normal;
using testing::values;

using Arrays = std::vector<mx::array>;

class Fusion : public ::testing::Test {
 protected:
  void SetUp() override { reset_fusion_report(); }
  void TearDown() override { set_fused_enabled(true); }
};

mx::array lora(const mx::array& x) {
  static const Weight weight = pack(normal({6, 8}, 1));
  return lora_linear(x, weight, std::nullopt, normal({8, 2}, 2), normal({2, 6}, 3), 1.0f);
}

mx::array gradient(const mx::array& x) {
  return mx::grad([](const mx::array& v) { return mx::sum(lora(v)); })(x);
}

TEST_F(Fusion, CountsEachWayAndDirectionByModule) {
  for (const std::string name : {"layers.0.q_proj", "layers.0.k_proj"}) {
    const ModuleScope scope(name);
    auto both =
        mx::value_and_grad([](const mx::array& v) { return mx::sum(lora(v)); })(normal({3, 8}, 4));
    mx::eval(both.first, both.second);
  }
  const auto report = fusion_report();
  ASSERT_EQ(report.size(), 4u);
  for (const auto& record : report) {
    EXPECT_EQ(record.op, "lora_linear");
    EXPECT_TRUE(record.fused);
    EXPECT_EQ(record.reason, "");
    EXPECT_EQ(record.runs, 1u);
  }
  EXPECT_EQ(report[0].module, "layers.0.k_proj");
  EXPECT_EQ(report[0].pass, Pass::kForward);
  EXPECT_EQ(report[1].pass, Pass::kBackward);
  EXPECT_EQ(report[2].module, "layers.0.q_proj");

  reset_fusion_report();
  EXPECT_TRUE(fusion_report().empty());
}

TEST_F(Fusion, CountsEvaluationsNotCalls) {
  const auto y = lora(normal({3, 8}, 4));
  EXPECT_TRUE(fusion_report().empty());
  mx::eval(y);
  ASSERT_EQ(fusion_report().size(), 1u);
}

TEST_F(Fusion, ScopesNest) {
  EXPECT_EQ(ModuleScope::current(), "");
  const ModuleScope outer("outer");
  {
    const ModuleScope inner("inner");
    EXPECT_EQ(ModuleScope::current(), "inner");
  }
  EXPECT_EQ(ModuleScope::current(), "outer");
}

// float16 has no kernel on the CPU: the same answer from MLX ops, counted with the reason, both
// directions.
TEST_F(Fusion, Float16IsComposedAndSaysWhy) {
  if (testing::on_gpu()) GTEST_SKIP() << "Metal kernels take float16";
  const auto x = normal({3, 8}, 4, 1.0f, mx::float16);
  const auto y = lora(x);
  EXPECT_EQ(y.dtype(), mx::float16);
  EXPECT_LE(max_error(y, values(lora(mx::astype(x, mx::float32)))), 2e-2);
  reset_fusion_report();
  mx::eval(y, gradient(x));
  const auto report = fusion_report();
  ASSERT_EQ(report.size(), 1u);  // y was evaluated above; the gradient needs no value of it
  EXPECT_FALSE(report[0].fused);
  EXPECT_EQ(report[0].pass, Pass::kBackward);
  EXPECT_NE(report[0].reason.find("float16"), std::string::npos) << report[0].reason;
}

TEST_F(Fusion, OneDirectionMayBeComposed) {
  if (testing::on_gpu()) GTEST_SKIP() << "a weight that Metal reads serves both directions";
  const auto forward_only = pack(normal({6, 8}, 1), mx::float32, false);
  auto both = mx::value_and_grad([&](const mx::array& v) {
    return mx::sum(mx::sin(linear(v, forward_only)));
  })(normal({3, 8}, 4));
  mx::eval(both.first, both.second);
  const auto report = fusion_report();
  ASSERT_EQ(report.size(), 2u);
  EXPECT_TRUE(report[0].fused);
  EXPECT_EQ(report[0].pass, Pass::kForward);
  EXPECT_FALSE(report[1].fused);
  EXPECT_EQ(report[1].pass, Pass::kBackward);
  EXPECT_EQ(report[1].reason, "the weight is packed for forward only");
}

// Everything once, values and gradients.
Arrays all_ops() {
  static const Weight head = pack(normal({11, 8}, 7));
  const auto x = normal({2, 3, 8}, 4);
  const auto targets = mx::array({1, 2, -100, 4, 5, 10}, {2, 3});
  const auto loss = [&](const mx::array& v) {
    const auto delta = lora_forward_fused(v, normal({8, 2}, 5), normal({2, 8}, 6), 0.5f);
    const auto mixed = swiglu(delta, linear(v, normal({8, 8}, 8)));
    return mx::add(mx::sum(linear_cross_entropy(mixed, head, targets)), mx::sum(lora(v)));
  };
  auto [value, slope] = mx::value_and_grad(loss)(x);
  mx::eval(value, slope);
  return {value, slope};
}

void expect_all_composed_because(const std::string& reason) {
  const auto report = fusion_report();
  for (const std::string op :
       {"linear", "linear_cross_entropy", "lora_delta", "lora_linear", "swiglu"}) {
    for (const auto pass : {Pass::kForward, Pass::kBackward}) {
      const auto found = std::find_if(report.begin(), report.end(), [&](const auto& record) {
        return record.op == op && record.pass == pass;
      });
      ASSERT_NE(found, report.end()) << op << " " << name_of(pass);
      EXPECT_FALSE(found->fused) << op;
      EXPECT_EQ(found->reason, reason);
    }
  }
  EXPECT_EQ(report.size(), 10u);
}

TEST_F(Fusion, OffMeansSameAnswersFromMlx) {
  const auto fused = all_ops();
  testing::expect_fused();
  EXPECT_EQ(fusion_report().size(), 10u);
  reset_fusion_report();
  set_fused_enabled(false);
  const auto composed = all_ops();
  expect_all_composed_because("fusion is turned off");
  EXPECT_LE(max_error(fused[0], values(composed[0])), 1e-3);
  EXPECT_LE(max_error(fused[1], values(composed[1])), 1e-3);
}

// Run by CTest with GRAFT_FUSED=0 in the environment; disabled without it.
TEST_F(Fusion, DISABLED_EnvironmentTurnsFusionOff) {
  EXPECT_FALSE(fused_enabled());
  all_ops();
  expect_all_composed_because("fusion is turned off");
}

}  // namespace
}  // namespace graft::mlx
