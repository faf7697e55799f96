// The comparisons under MLX: which there are, what may be called fused, and how it is written down.
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

#include "benchmarks/graft_bench/comparison.h"
#include "benchmarks/graft_bench/plan.h"
#include "benchmarks/graft_bench/plan_table.h"
#include "graft/mlx/fusion.h"
#include "graft/mlx/lora.h"

namespace graft::bench {
namespace {

TEST(BenchPlan, HasEveryLineOfThePlan) {
  std::set<std::string> lines;
  for (const MakeComparison& make : delta_comparisons({})) {
    const Subject of = make().subject;
    EXPECT_EQ(of.in, 512);
    EXPECT_EQ(of.out, 512);
    lines.insert(std::to_string(of.batch) + "x" + std::to_string(of.sequence) + " r" +
                 std::to_string(of.rank));
  }
  EXPECT_EQ(lines.size(), 3u * 3u * 4u);  // batch × sequence × rank
  EXPECT_TRUE(lines.count("16x512 r32"));
  EXPECT_TRUE(lines.count("1x32 r4"));
}

// x + x, which no LoRA makes, and a Graft that makes what `fused` does of it.
Comparison doubling(Call fused) {
  const mx::array x = mx::full({2, 3}, 1.5f);
  Comparison comparison;
  comparison.subject = {"plan", "double", Pass::kForward, 1, 2, 3, 3, 4};
  comparison.fused = std::move(fused);
  comparison.mlx.emplace_back("slow", [x](std::size_t) {
    mx::array y = mx::add(x, x);
    for (int i = 0; i < 200; ++i) y = mx::subtract(mx::add(y, x), x);
    return Arrays{y};
  });
  comparison.mlx.emplace_back("add", [x](std::size_t) { return Arrays{mx::add(x, x)}; });
  comparison.unfused = [x](std::size_t) { mx::eval(mx::add(x, x)); };
  return comparison;
}

Compared measured(const Comparison& comparison) {
  Stopwatch stopwatch(3, 0.1);
  return compare(comparison, stopwatch, false);
}

TEST(BenchPlan, TakesTheFastestWayOfMlx) {
  const Compared result = measured(doubling([](std::size_t) {
    return Arrays{mx::full({2, 3}, 3.0f)};
  }));
  EXPECT_EQ(result.objection, "");
  EXPECT_EQ(result.mlx->way, "add");
  EXPECT_EQ(result.mlx_together->way, "add");
  EXPECT_EQ(result.together, 32u);
  EXPECT_DOUBLE_EQ(*result.speed_up(), result.unfused->median / result.fused->median);
  EXPECT_DOUBLE_EQ(*result.of_mlx(), result.fused->median / result.mlx->median);
  // A call's share of an eval, not all 32 of them.
  EXPECT_LT(result.fused_together->median, 10.0 * result.fused->median);
}

TEST(BenchPlan, AWrongResultHasNoFusedFigure) {
  for (const float wrong : {3.1f, -3.0f, 0.0f, NAN, INFINITY}) {
    const Compared result = measured(doubling([=](std::size_t) {
      return Arrays{mx::full({2, 3}, wrong)};
    }));
    EXPECT_NE(result.objection.find("differs"), std::string::npos) << wrong;
    EXPECT_FALSE(result.fused || result.fused_together || result.of_mlx()) << wrong;
    EXPECT_TRUE(result.unfused && result.mlx) << wrong;
  }
}

TEST(BenchPlan, OneElementThatIsNoNumberIsWrong) {
  const Compared result = measured(doubling([](std::size_t) {
    return Arrays{mx::array({3.0f, 3.0f, 3.0f, 3.0f, NAN, 3.0f}, {2, 3})};
  }));
  EXPECT_NE(result.objection.find("differs"), std::string::npos);
}

TEST(BenchPlan, AKernelThatFailsIsAnObjection) {
  const Compared result = measured(
      doubling([](std::size_t) -> Arrays { throw std::runtime_error("no such\nfunction"); }));
  EXPECT_EQ(result.objection, "no such function");
}

TEST(BenchPlan, ComposedOpsHaveNoFusedFigure) {
  Comparison comparison = doubling([](std::size_t) {
    const mx::array x = mx::ones({2, 3}), a = mx::ones({3, 1}), b = mx::ones({1, 3});
    return Arrays{mlx::lora_forward_fused(x, a, b, 1.0f)};  // 3 everywhere
  });
  EXPECT_EQ(measured(comparison).objection, "");
  mlx::set_fused_enabled(false);
  const Compared result = measured(comparison);
  mlx::set_fused_enabled(true);
  EXPECT_EQ(result.objection.rfind("forward did not run fused: ", 0), 0u) << result.objection;
  EXPECT_FALSE(result.fused);
  EXPECT_EQ(objections_in({result, result}), "double: " + result.objection + "\n");
}

Compared some_result(double fused_us) {
  const auto timing = [](double us) {
    return Compared::Measured{timing_of({{us}}), "a way, or b"};
  };
  Compared result;
  result.subject = {"plan", "lora_linear", Pass::kForwardBackward, 16, 512, 512, 512, 32};
  result.unfused = result.mlx = result.mlx_together = timing(8.0 * fused_us);
  result.fused = result.fused_together = timing(fused_us);
  return result;
}

TEST(BenchPlanTable, FitsAnOrdinaryTerminal) {
  Compared composed = some_result(1.0);
  composed.fused.reset();
  composed.fused_together.reset();
  for (const Compared& result : {some_result(5.0), some_result(123456.7), composed}) {
    EXPECT_LE(delta_line(result).size(), 80u) << delta_line(result);
    EXPECT_LE(kernel_line(result).size(), 80u) << kernel_line(result);
  }
  EXPECT_LE(delta_head().size(), 80u);
  EXPECT_LE(kernel_head().size(), 80u);
  EXPECT_NE(delta_line(some_result(5.0)).find(" 8.00x "), std::string::npos);
  EXPECT_NE(delta_line(some_result(5.0)).find(" 12% "), std::string::npos);
}

TEST(BenchPlanTable, SaysHowFarTheRatiosReach) {
  Compared slower = some_result(5.0);
  slower.unfused->median = 10.0;
  const std::string summary = delta_summary({some_result(5.0), slower});
  EXPECT_NE(summary.find("speed-up 2.00x to 8.00x"), std::string::npos) << summary;
  EXPECT_NE(delta_summary({}).find("no figures"), std::string::npos);
}

TEST(BenchPlanTable, FilesKeepCommasWithinAColumn) {
  Compared result = some_result(5.0);
  result.objection = "says \"no\", twice";
  const std::string text = csv_text({{"device", "a machine"}}, {fields_of(result)});
  EXPECT_EQ(text.rfind("# device: a machine\ntable,op,", 0), 0u) << text;
  EXPECT_NE(text.find(",\"a way, or b\","), std::string::npos) << text;
  EXPECT_NE(text.find(",\"says \"\"no\"\", twice\"\n"), std::string::npos) << text;
}

}  // namespace
}  // namespace graft::bench
