#include <gtest/gtest.h>

#include <array>
#include <cstdint>

#include "product/cuda/hopper_outer.h"
#include "support/gpus.h"

namespace graft::cuda {
namespace {

using test::kH200;

HopperOuterLaunch plan(std::int64_t m, std::int64_t k, std::int64_t n, std::int64_t rank) {
  return plan_hopper_outer_launch(m, std::array{k, n}, rank, kH200);
}

TEST(HopperOuterPlan, ABlockSumsAllRanks) {
  EXPECT_EQ(plan(4096, 4096, 4096, 1).width, 64);
  EXPECT_EQ(plan(4096, 4096, 4096, 64).width, 64);
  EXPECT_EQ(plan(4096, 4096, 4096, 65).width, 128);
  EXPECT_EQ(plan(4096, 4096, 4096, 128).width, 128);
  EXPECT_EQ(plan(4096, 4096, 4096, 129).width, 256);
  EXPECT_EQ(plan(4096, 4096, 4096, 256).width, 256);
}

TEST(HopperOuterPlan, RowsAreCutWhereTilesAreFew) {
  for (const std::int64_t rank : {64, 128, 256}) {
    EXPECT_EQ(plan(4096, 4096, 4096, rank).clusters, 64);
    EXPECT_EQ(plan(4096, 4096, 4096, rank).splits, 2) << rank;
    EXPECT_EQ(plan(8192, 2048, 2048, rank).splits, 3) << rank;
    EXPECT_EQ(plan(65536, 512, 256, rank).splits, 8) << rank;
    EXPECT_EQ(plan(4096, 8192, 8192, rank).splits, 1) << rank;
  }
}

TEST(HopperOuterPlan, TilesOfTailsAndOfOneProduct) {
  EXPECT_EQ(plan(4096, 8, 136, 64).clusters, 1 + 2);
  const std::int64_t cols = 4104;
  EXPECT_EQ(plan_hopper_outer_launch(4096, {&cols, 1}, 64, kH200).clusters, 33);
}

TEST(HopperOuterPlan, EveryPartHasAStep) {
  for (const std::int64_t m : {1, 64, 65, 129, 200, 500, 4096}) {
    for (const std::int64_t rank : {17, 128, 256}) {
      EXPECT_LE(plan(m, 72, 72, rank).splits, (m + 63) / 64) << m << ' ' << rank;
    }
  }
}

TEST(HopperOuterPlan, ADeviceWhoseClustersAreNotKnown) {
  const DeviceFacts facts{9, 0, 114, 232448, 52428800};
  const HopperOuterLaunch plan =
      plan_hopper_outer_launch(4096, std::array<std::int64_t, 2>{4096, 4096}, 64, facts);
  EXPECT_EQ(plan.clusters, 64);
  EXPECT_GE(plan.splits, 1);
}

}  // namespace
}  // namespace graft::cuda
