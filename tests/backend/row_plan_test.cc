#include "backend/cuda/row_plan.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

namespace graft::cuda {
namespace {

constexpr std::size_t kKilobyte = 1024;
constexpr DeviceFacts kH200{9, 0, 132, 227 * kKilobyte, 50 << 20};
constexpr DeviceFacts kA100{8, 0, 108, 163 * kKilobyte, 40 << 20};
constexpr DeviceFacts kAda{8, 9, 142, 99 * kKilobyte, 72 << 20};

void expect_sound(const DeviceFacts& device, const RowWork& work) {
  SCOPED_TRACE(std::to_string(work.rows) + "x" + std::to_string(work.columns) + " of " +
               std::to_string(work.element_bytes) + " bytes, " + std::to_string(work.packs) +
               " packs of " + std::to_string(work.inputs) + " on " + std::to_string(device.major));
  const RowPlan plan = plan_rows(device, work);
  if (!plan.fits) return;
  const int packs = row_packs(work.packs, plan.deep);
  const std::int64_t pack = kPackBytes / static_cast<std::int64_t>(work.element_bytes);
  // Every column has a thread.
  EXPECT_EQ(plan.part % pack, 0);
  EXPECT_GE(std::int64_t{plan.part} * plan.cluster, work.columns);
  EXPECT_LT(std::int64_t{plan.part} * (plan.cluster - 1), work.columns) << "a block has nothing";
  EXPECT_GE(plan.group * packs * pack, plan.part);
  // And every row a team: teams are `groups` of each cluster.
  EXPECT_EQ(plan.group % 32, 0);
  EXPECT_GE(plan.groups, 1);
  EXPECT_TRUE(plan.cluster == 1 || plan.groups == 1);
  EXPECT_TRUE(plan.group == 32 || plan.groups <= 15);
  EXPECT_LE(plan.threads(), row_threads(plan.deep));
  EXPECT_GE(plan.blocks, plan.cluster);
  EXPECT_EQ(plan.blocks % plan.cluster, 0);
  EXPECT_LE(plan.blocks, device.multiprocessors);
  EXPECT_LT((plan.clusters() - 1) * std::int64_t{plan.groups}, work.rows) << "a block has nothing";
  EXPECT_LE(plan.shared_bytes + 2 * kKilobyte, device.shared_bytes);
  EXPECT_EQ(plan.shared_bytes, static_cast<std::size_t>(plan.threads() * packs * work.inputs *
                                                        row_stages(work.packs, work.inputs)) *
                                   kPackBytes);
}

TEST(RowPlan, GivesEveryElementToAThread) {
  for (const DeviceFacts& device : {kH200, kA100, kAda}) {
    for (const std::size_t bytes : {2, 4}) {
      for (const auto& [packs, inputs] : {std::pair{2, 1}, {2, 2}, {1, 3}}) {
        for (std::int64_t columns :
             {8,     64,    256,   264,   512,   520,   1024,  2048,   4096,   4104,   5000,   8192,
              12288, 14336, 16384, 16392, 32768, 40000, 65536, 100000, 131072, 262144, 1 << 24}) {
          for (const std::int64_t rows : {1, 7, 131, 132, 133, 1000, 4096, 1 << 20}) {
            expect_sound(device, {rows, columns, bytes, packs, inputs, true});
          }
        }
      }
    }
  }
}

TEST(RowPlan, KeepsRowsInRegistersAsFarAsTheyGo) {
  const auto fits = [](const DeviceFacts& device, std::int64_t columns, std::size_t bytes,
                       int packs, int inputs) {
    return plan_rows(device, {4096, columns, bytes, packs, inputs, true}).fits;
  };
  for (const std::size_t bytes : {2, 4}) {
    const auto elements = [bytes](std::int64_t n) { return n / static_cast<std::int64_t>(bytes); };
    // A cluster of 8 blocks has 256 KB of a row forward, half of it backward.
    EXPECT_TRUE(fits(kH200, elements(256 << 10), bytes, 2, 1));
    EXPECT_FALSE(fits(kH200, elements((256 << 10) + 64 * 8), bytes, 2, 1));
    EXPECT_TRUE(fits(kH200, elements(128 << 10), bytes, 1, 3));
    EXPECT_FALSE(fits(kH200, elements(256 << 10), bytes, 1, 3));
    EXPECT_TRUE(fits(kA100, elements(32 << 10), bytes, 2, 1));
    EXPECT_FALSE(fits(kA100, elements(64 << 10), bytes, 2, 1)) << "no clusters";
  }
}

TEST(RowPlan, UsesTheWholeDevice) {
  const RowPlan many = plan_rows(kH200, {4096, 4096, 2, 2, 1, true});
  EXPECT_EQ(many.blocks, 132);
  EXPECT_EQ(many.threads(), row_threads(many.deep));
  // Of few rows each multiprocessor has one before any has two.
  const RowPlan few = plan_rows(kH200, {100, 4096, 2, 2, 1, true});
  EXPECT_EQ(few.blocks, 100);
  EXPECT_EQ(few.groups, 1);
}

TEST(RowPlan, LeavesToOthersWhatIsNotInPacks) {
  EXPECT_FALSE(plan_rows(kH200, {16, 64, 2, 2, 1, false}).fits);
  EXPECT_FALSE(plan_rows(kH200, {0, 64, 2, 2, 1, true}).fits);
  EXPECT_FALSE(plan_rows(kH200, {16, 0, 2, 2, 1, true}).fits);

  alignas(16) static std::uint16_t memory[64];
  const auto view = [](int offset, std::int64_t columns, std::int64_t stride) {
    const std::int64_t shape[] = {2, columns}, strides[] = {stride, 1};
    return ConstTensorView(memory + offset, DType::kBFloat16, shape, strides);
  };
  EXPECT_TRUE(in_packs({view(0, 8, 8), view(8, 16, 24), {}}));
  EXPECT_TRUE(in_packs({view(24, 8, -8), view(0, 8, 0)}));
  EXPECT_FALSE(in_packs({view(0, 8, 8), view(1, 8, 8)}));
  EXPECT_FALSE(in_packs({view(0, 7, 8)}));
  EXPECT_FALSE(in_packs({view(0, 8, 12)}));
}

}  // namespace
}  // namespace graft::cuda
