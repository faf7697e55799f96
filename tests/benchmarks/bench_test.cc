// The arithmetic of the benchmark: what is counted, and what follows from times.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "benchmarks/graft_bench/arithmetic.h"
#include "benchmarks/graft_bench/cases.h"
#include "benchmarks/graft_bench/overhead_plot.h"
#include "benchmarks/graft_bench/result.h"
#include "benchmarks/graft_bench/table.h"

namespace graft::bench {
namespace {

Case lora(Pass pass) { return {"plan", Op::kLoraLinear, pass, 1, 128, 512, 256, 8}; }

// Counts multiplications and additions of the products as the loops would do them.
double counted(std::int64_t m, std::int64_t n, std::int64_t k) {
  double operations = 0;
  for (std::int64_t i = 0; i < m * n; ++i) operations += 2.0 * static_cast<double>(k);
  return operations;
}

TEST(BenchArithmetic, CountsEveryProductOnce) {
  const double base = counted(128, 256, 512);
  const double shrink = counted(128, 8, 512), expand = counted(128, 256, 8);
  EXPECT_EQ(flops(lora(Pass::kForward)), base + shrink + expand);
  const double dx = counted(128, 512, 256), g = counted(128, 8, 256), onto = counted(128, 512, 8);
  const double da = counted(512, 8, 128), db = counted(8, 256, 128);
  EXPECT_EQ(flops(lora(Pass::kForwardBackward)), base + shrink + expand + dx + g + onto + da + db);

  Case delta = lora(Pass::kForward);
  delta.op = Op::kLoraDelta;
  EXPECT_EQ(flops(delta), shrink + expand);
  Case linear = lora(Pass::kForwardBackward);
  linear.op = Op::kLinear;
  linear.rank = 0;
  EXPECT_EQ(flops(linear), base + dx);
}

TEST(BenchArithmetic, FloorIsTheAdaptersShareOfTheBase) {
  for (const Pass pass : {Pass::kForward, Pass::kForwardBackward}) {
    const Case item = lora(pass);
    Case linear = item;
    linear.op = Op::kLinear;
    linear.rank = 0;
    EXPECT_DOUBLE_EQ(floor_overhead(item), flops(item) / flops(linear) - 1.0);
    EXPECT_EQ(floor_overhead(linear), 0.0);
  }
  // r·(K + N) / (K·N), by hand: 8·768 / (512·256).
  EXPECT_DOUBLE_EQ(floor_overhead(lora(Pass::kForward)), 6144.0 / 131072.0);
}

TEST(BenchArithmetic, OverheadOfTwiceTheTimeIsOne) {
  EXPECT_DOUBLE_EQ(overhead(timing_of({{20}}), timing_of({{10}})), 1.0);
  EXPECT_DOUBLE_EQ(overhead(timing_of({{9}}), timing_of({{10}})), -0.1);
}

TEST(BenchArithmetic, OverheadComparesWithinRounds) {
  // The machine is half as fast in the last two rounds; the adapter costs a tenth in each.
  const Timing base = timing_of({{10, 10}, {20, 20}, {20, 20}});
  const Timing fused = timing_of({{11, 11, 11}, {22}, {22}});
  EXPECT_DOUBLE_EQ(base.median, 20.0);
  EXPECT_DOUBLE_EQ(fused.median, 11.0);
  EXPECT_NEAR(overhead(fused, base), 0.1, 1e-12);
}

TEST(BenchArithmetic, BytesOfALinear) {
  Case item = lora(Pass::kForward);
  item.op = Op::kLinear;
  item.rank = 0;
  EXPECT_EQ(bytes(item), 4.0 * (128 * 512 + 128 * 256 + 512 * 256));
  item.bf16 = true;
  EXPECT_EQ(bytes(item), 2.0 * (128 * 512 + 128 * 256 + 512 * 256));
}

TEST(BenchArithmetic, BytesOfBothPassesCountEachTensorOnce) {
  // x, y, dx, dy; W; A, B, dA, dB.
  EXPECT_EQ(bytes(lora(Pass::kForwardBackward)),
            4.0 * (2 * 128 * (512 + 256) + 512 * 256 + 2 * 8 * (512 + 256)));
}

TEST(BenchArithmetic, SpreadIsLinearBetweenNeighbours) {
  const Spread odd = spread_of({5, 1, 4, 2, 3});
  EXPECT_DOUBLE_EQ(odd.median, 3.0);
  EXPECT_DOUBLE_EQ(odd.p10, 1.4);
  EXPECT_DOUBLE_EQ(odd.p90, 4.6);
  EXPECT_DOUBLE_EQ(spread_of({1, 2}).median, 1.5);
  EXPECT_DOUBLE_EQ(spread_of({7}).p90, 7.0);
}

TEST(BenchArithmetic, BoundIsTheSlowestLimit) {
  Machine machine;
  machine.gflops_f32 = 200;
  machine.gflops_bf16 = 400;
  machine.launch_us = 1;
  machine.add_moved(4e6, 60);
  const Case item = lora(Pass::kForward);
  const Bound arithmetic = bound_of(item, machine, 4e6);
  EXPECT_EQ(arithmetic.limit, Limit::kArithmetic);
  EXPECT_DOUBLE_EQ(arithmetic.us, flops(item) / 200e3);

  Machine slow = machine;
  slow.add_moved(64e6, 0.5);
  EXPECT_EQ(bound_of(item, slow, 4e6).limit, Limit::kArithmetic);
  EXPECT_EQ(bound_of(item, slow, 64e6).limit, Limit::kTraffic);
  EXPECT_DOUBLE_EQ(bound_of(item, slow, 64e6).us, bytes(item) / 0.5e3);
  slow.launch_us = 1e6;
  EXPECT_EQ(bound_of(item, slow, 4e6).limit, Limit::kLaunch);
}

TEST(BenchArithmetic, TrafficIsTheBestOfWhatIsNoSmaller) {
  Machine machine;
  EXPECT_EQ(machine.gbs(1e6), 0.0);
  machine.add_moved(4e6, 70);
  machine.add_moved(8e6, 50);
  machine.add_moved(8e6, 80);  // the machine was slow before
  machine.add_moved(200e6, 30);
  EXPECT_EQ(machine.gbs(4e6), 80);
  EXPECT_EQ(machine.gbs(8e6), 80);
  EXPECT_EQ(machine.gbs(9e6), 30);
  EXPECT_EQ(machine.gbs(201e6), 0.0);
}

TEST(BenchCases, HaveTheGridAndEveryOpBothWays) {
  const std::vector<Case> cases = all_cases({});
  std::set<std::string> labels;
  int grid = 0;
  for (const Case& item : cases) {
    EXPECT_TRUE(labels.insert(label_of(item)).second) << "twice: " << label_of(item);
    grid += item.set == "grid" && item.op == Op::kLoraDelta && item.pass == Pass::kForward;
  }
  EXPECT_EQ(grid, 3 * 3 * 4);  // batch × sequence × rank
  EXPECT_TRUE(labels.count("plan lora_delta forward 1x128x512>512 r8 f32 dropout0"));
  EXPECT_TRUE(labels.count("model lora_linear forward+backward 4x128x576>1536 r16 f32 dropout0.1"));
  EXPECT_TRUE(labels.count("model linear forward 4x128x576>49152 r0 f32 dropout0"));
}

TEST(BenchCases, FilterTakesWholeWordsAndAllOfThem) {
  CaseOptions options;
  options.filter = {"plan lora_linear", "forward", "dropout0"};
  const std::vector<Case> cases = all_cases(options);
  ASSERT_EQ(cases.size(), 1u);
  EXPECT_EQ(label_of(cases[0]), "plan lora_linear forward 1x128x512>512 r8 f32 dropout0");
  options.filter = {"lora"};
  EXPECT_TRUE(all_cases(options).empty());
  options.filter = {};
  options.without = {"grid", "lora_delta"};
  const std::vector<Case> left = all_cases(options);
  EXPECT_FALSE(left.empty());
  for (const Case& item : left) {
    EXPECT_TRUE(item.set != "grid" && item.op != Op::kLoraDelta) << label_of(item);
  }
}

// Results with times of a kind that a user of the file would meet.
std::vector<Result> some_results() {
  std::vector<Result> results;
  for (const Pass pass : {Pass::kForward, Pass::kForwardBackward}) {
    const std::vector<Candidate> candidates = {{"core", false, {}},   {"base", false, {}},
                                               {"eval", false, {}},   {"blas", true, {}},
                                               {"mlx add", true, {}}, {"mlx addmm", true, {}}};
    const std::vector<Timing> timings = {
        timing_of({{105, 110, 120}}), timing_of({{99, 100, 101}}),  timing_of({{120, 130, 140}}),
        timing_of({{210, 220, 230}}), timing_of({{290, 300, 310}}), timing_of({{270, 275, 280}})};
    results.push_back(result_of(lora(pass), 3, candidates, timings));
  }
  return results;
}

Machine some_machine() {
  Machine machine;
  machine.gflops_f32 = machine.gflops_bf16 = 500;
  machine.add_moved(1e9, 50);
  return machine;
}

TEST(BenchResult, TakesTheBestPeerAndTheBestOrder) {
  const Result result = some_results().front();
  EXPECT_EQ(result.composed_order, "addmm");
  EXPECT_DOUBLE_EQ(result.unfused(), 220.0);
  EXPECT_DOUBLE_EQ(result.speed_up(), 2.0);
  EXPECT_DOUBLE_EQ(result.eval_speed_up(), 275.0 / 130.0);
}

TEST(BenchResult, EveryLineOfTheFileHasEveryColumn) {
  const Machine machine = some_machine();
  std::istringstream lines(csv_of({{"device", "a machine"}}, machine, some_results()));
  std::string line;
  ASSERT_TRUE(std::getline(lines, line));
  EXPECT_EQ(line, "# device: a machine");
  ASSERT_TRUE(std::getline(lines, line));
  const auto commas = std::count(line.begin(), line.end(), ',');
  int count = 0;
  while (std::getline(lines, line)) {
    EXPECT_EQ(std::count(line.begin(), line.end(), ','), commas) << line;
    EXPECT_NE(line.find(",0.10000,"), std::string::npos) << "overhead: " << line;
    ++count;
  }
  EXPECT_EQ(count, 2);
}

TEST(BenchResult, ATimeBelowItsBoundIsReported) {
  // 110 µs each; the bound of the first is its arithmetic, of the second what it moves.
  const std::vector<Result> results = some_results();
  Machine machine;
  machine.gflops_f32 = flops(results[0].item) / 115e3;
  machine.add_moved(1e9, 1e6);
  EXPECT_EQ(beaten_bounds(machine, {results[0]}), "") << "5 % are noise";
  machine.gflops_f32 = flops(results[0].item) / 117e3;
  EXPECT_EQ(beaten_bounds(machine, {results[0]}), label_of(results[0].item) + "\n");

  Machine slow_memory;
  slow_memory.gflops_f32 = 1e6;
  slow_memory.add_moved(1e9, bytes(results[1].item) / 180e3);
  EXPECT_EQ(beaten_bounds(slow_memory, {results[1]}), label_of(results[1].item) + "\n");
}

TEST(BenchTable, FitsTheTerminal) {
  const Machine machine = some_machine();
  std::vector<Result> results = some_results();
  results[0].item.dropout = 0.1f;
  for (const int width : {80, 90, 100, 120}) {
    const Table table(width);
    EXPECT_LE(table.head().size(), static_cast<std::size_t>(width));
    for (const Result& result : results) {
      EXPECT_LE(table.line(result, machine).size(), static_cast<std::size_t>(width));
    }
  }
}

TEST(BenchPlot, MarksEachOverheadOnce) {
  const std::string svg = overhead_plot_svg(some_results(), "title");
  std::size_t marks = 0;
  for (std::size_t at = svg.find("class=\"graft\""); at != std::string::npos;
       at = svg.find("class=\"graft\"", at + 1)) {
    ++marks;
  }
  EXPECT_EQ(marks, 3u);  // two results, and the legend
  EXPECT_EQ(overhead_plot_svg({}, "title"), "");
}

TEST(BenchPlot, WhatIsBeyondTheEdgeStandsThereInOneText) {
  std::vector<Result> results = some_results();
  results.resize(1);
  EXPECT_NE(overhead_plot_svg(results, "title").find(">+120 %</text>"), std::string::npos);
  results[0].base = timing_of({{49, 50, 51}});
  EXPECT_NE(overhead_plot_svg(results, "title").find(">+120 %, +340 %</text>"), std::string::npos);
}

}  // namespace
}  // namespace graft::bench
