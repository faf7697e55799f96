#include "backend/cuda/row_plan.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "support/gpus.h"

namespace graft::cuda {
namespace {

constexpr std::size_t kKilobyte = 1024;
using test::kA100, test::kH200;
constexpr DeviceFacts kAda{8, 9, 142, 99 * kKilobyte, 72 << 20};

std::string text_of(const DeviceFacts& device, const RowWork& work) {
  return std::to_string(work.rows) + "x" + std::to_string(work.columns) + " of " +
         std::to_string(work.element_bytes) + " bytes on " + std::to_string(device.major);
}

// Every column has a thread, and no block of a cluster has none.
void expect_columns_dealt(const RowPlan& plan, const RowWork& work) {
  const std::int64_t pack = kPackBytes / static_cast<std::int64_t>(work.element_bytes);
  EXPECT_EQ(plan.part % pack, 0);
  EXPECT_GE(std::int64_t{plan.part} * plan.cluster, work.columns);
  EXPECT_LT(std::int64_t{plan.part} * (plan.cluster - 1), work.columns);
  EXPECT_GE(plan.group * plan.packs * pack, plan.part);
  EXPECT_EQ(plan.group % 32, 0);
  EXPECT_GE(plan.groups, 1);
  EXPECT_TRUE(plan.cluster == 1 || plan.groups == 1);
  EXPECT_TRUE(plan.group == 32 || plan.groups <= 15) << "more groups than barriers";
  EXPECT_GE(plan.blocks, plan.cluster);
  EXPECT_EQ(plan.blocks % plan.cluster, 0);
  EXPECT_LT((plan.clusters() - 1) * std::int64_t{plan.groups}, work.rows) << "a block has no row";
}

void expect_sound(const DeviceFacts& device, const RowWork& work) {
  SCOPED_TRACE(text_of(device, work));
  for (const int most_packs : {kHandPacks, kLongPacks}) {
    const RowPlan plan = plan_rows(device, work, most_packs);
    if (!plan.fits) continue;
    expect_columns_dealt(plan, work);
    EXPECT_LE(plan.threads(), kHandThreads);
    EXPECT_LE(plan.packs, most_packs);
    if (work.columns * static_cast<std::int64_t>(work.element_bytes) <= kLongBytes) {
      EXPECT_LE(plan.packs, kHandPacks) << "more for a thread than short rows need";
    }
    EXPECT_LT(plan.group * (plan.packs - 1) * (kPackBytes / static_cast<int>(work.element_bytes)),
              plan.part)
        << "packs that no thread needs";
    EXPECT_GE(plan.clusters() * std::int64_t{plan.groups}, work.rows) << "a row has no team";
    EXPECT_EQ(plan.shared_bytes, 0u);
    EXPECT_TRUE(plan.group == 32 || plan.groups == 1) << "teams of warps share a barrier";
  }
  for (const int inputs : {1, 3}) {
    const RowPlan plan = plan_flow(device, work, inputs);
    if (!plan.fits) continue;
    expect_columns_dealt(plan, work);
    EXPECT_LE(plan.threads(), kFlowThreads);
    EXPECT_EQ(plan.packs, kFlowPacks);
    EXPECT_LE(plan.blocks, device.multiprocessors);
    EXPECT_LE(plan.shared_bytes + 2 * kKilobyte, device.shared_bytes);
    // The place of a thread's packs does not depend on how many threads there are.
    EXPECT_EQ(plan.shared_bytes,
              static_cast<std::size_t>(kFlowThreads * kFlowPacks * inputs *
                                       flow_stages(device.major, inputs) * kPackBytes) +
                  kWeightBytes);
  }
}

TEST(RowPlan, GivesEveryElementToAThread) {
  for (const DeviceFacts& device : {kH200, kA100, kAda}) {
    for (const std::size_t bytes : {2, 4}) {
      for (const std::int64_t columns :
           {8,     64,    256,   264,   512,    520,    1024,   2048,
            4096,  4104,  5000,  8192,  8200,   12288,  14336,  16384,
            16392, 32768, 40000, 65536, 100000, 131072, 262144, 1 << 24}) {
        for (const std::int64_t rows : {1, 7, 131, 132, 133, 1000, 4096, 1 << 20}) {
          expect_sound(device, {rows, columns, bytes, true});
        }
      }
    }
  }
}

TEST(RowPlan, KeepsRowsInRegistersAsFarAsTheyGo) {
  const auto fits = [](const DeviceFacts& device, std::int64_t row_bytes, std::size_t bytes) {
    return plan_rows(device, {4096, row_bytes / static_cast<std::int64_t>(bytes), bytes, true})
        .fits;
  };
  const auto flows = [](const DeviceFacts& device, std::int64_t row_bytes, std::size_t bytes) {
    return plan_flow(device, {4096, row_bytes / static_cast<std::int64_t>(bytes), bytes, true}, 3)
        .fits;
  };
  constexpr std::int64_t kHand = kHandThreads * kHandPacks * kPackBytes;
  constexpr std::int64_t kFlow = kFlowThreads * kFlowPacks * kPackBytes;
  for (const std::size_t bytes : {2, 4}) {
    // Of a cluster's 8 blocks each has a part.
    EXPECT_TRUE(fits(kH200, 8 * kHand, bytes));
    EXPECT_FALSE(fits(kH200, 8 * kHand + kPackBytes, bytes));
    EXPECT_TRUE(flows(kH200, 8 * kFlow, bytes));
    EXPECT_FALSE(flows(kH200, 8 * kFlow + kPackBytes, bytes));
    // Others have no clusters.
    EXPECT_TRUE(fits(kA100, kHand, bytes));
    EXPECT_FALSE(fits(kA100, kHand + kPackBytes, bytes));
  }
}

TEST(RowPlan, ARowForEachTeamOrABlockForEachMultiprocessor) {
  EXPECT_EQ(plan_rows(kH200, {4096, 4096, 2, true}).blocks, 4096);
  const RowPlan narrow = plan_rows(kH200, {4096, 512, 2, true});
  EXPECT_EQ(narrow.group, 32);
  EXPECT_EQ(narrow.blocks * narrow.groups, 4096);
  EXPECT_EQ(plan_flow(kH200, {4096, 4096, 2, true}, 3).blocks, 132);
  // Of few rows each multiprocessor has one before any has two.
  const RowPlan few = plan_flow(kH200, {100, 4096, 2, true}, 3);
  EXPECT_EQ(few.blocks, 100);
  EXPECT_EQ(few.groups, 1);
}

// 640 packs of 160 threads are 4 in each; 160 packs are 3 in each of 64 threads, not 4 and 1.
TEST(RowPlan, WarpsHaveAsMuchToDoAsOthers) {
  EXPECT_EQ(plan_rows(kH200, {4096, 5120, 2, true}).packs, 4);
  const RowPlan plan = plan_rows(kH200, {4096, 1280, 2, true});
  EXPECT_EQ(plan.group, 64);
  EXPECT_EQ(plan.packs, 3);
}

TEST(RowPlan, LongRowsAreMoreForAThreadRatherThanMoreThreads) {
  EXPECT_EQ(plan_rows(kH200, {4096, 4096, 2, true}, kLongPacks).packs, 4);
  const RowPlan plan = plan_rows(kH200, {2048, 32768, 2, true}, kLongPacks);
  EXPECT_EQ(plan.packs, 8);
  EXPECT_EQ(plan.group, 512);
  EXPECT_EQ(plan.cluster, 1);
  EXPECT_EQ(plan_rows(kH200, {2048, 32768, 2, true}).cluster, 2);
}

TEST(RowPlan, LeavesToOthersWhatIsNotInPacks) {
  for (const RowWork& work : {RowWork{16, 64, 2, false}, {0, 64, 2, true}, {16, 0, 2, true}}) {
    EXPECT_FALSE(plan_rows(kH200, work).fits);
    EXPECT_FALSE(plan_flow(kH200, work, 3).fits);
  }

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
