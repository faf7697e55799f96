#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>

#include "product/cuda/hopper_rows.h"
#include "support/gpus.h"

namespace graft::cuda {
namespace {

using test::kH100Pcie, test::kH200;

TEST(HopperRowsPlan, TilesGrowWithRows) {
  const auto tile = [](std::int64_t m) {
    const HopperRowsPlan plan = plan_hopper_rows(m, 4096, 4096, 16, 2, kH200);
    return std::array{plan.tile_rows, plan.tile_columns, plan.splits};
  };
  for (const int m : {1, 16, 64}) EXPECT_EQ(tile(m), (std::array{64, 64, 2})) << m;
  for (const int m : {65, 128}) EXPECT_EQ(tile(m), (std::array{128, 64, 2})) << m;
  for (const int m : {129, 192}) EXPECT_EQ(tile(m), (std::array{128, 128, 2})) << m;
  EXPECT_EQ(plan_hopper_rows(128, 14336, 4096, 16, 2, kH200).tile_columns, 128);
}

TEST(HopperRowsPlan, NarrowProductsAreCutAlongK) {
  EXPECT_EQ(plan_hopper_rows(64, 1024, 4096, 16, 2, kH200).splits, 4);
  EXPECT_EQ(plan_hopper_rows(64, 512, 4096, 16, 2, kH200).splits, 8);
  EXPECT_EQ(plan_hopper_rows(64, 64, 65536, 16, 2, kH200).splits, 8);
  EXPECT_EQ(plan_hopper_rows(64, 14336, 4096, 16, 2, kH200).splits, 1);
  // No block without a step.
  EXPECT_EQ(plan_hopper_rows(64, 64, 64, 16, 2, kH200).splits, 1);
  EXPECT_EQ(plan_hopper_rows(64, 64, 200, 16, 2, kH200).splits, 4);
}

TEST(HopperRowsPlan, HIsMadeInParts) {
  const auto parts = [](std::int64_t k, std::int64_t rank, int bytes) {
    const HopperRowsPlan plan = plan_hopper_rows(64, 4096, k, rank, bytes, kH200);
    return std::array{plan.shrink_parts, plan.shrink_warps};
  };
  EXPECT_EQ(parts(4096, 0, 0), (std::array{0, 0}));
  EXPECT_EQ(parts(64, 16, 2), (std::array{1, 8}));
  EXPECT_EQ(parts(1024, 16, 2), (std::array{2, 8}));
  EXPECT_EQ(parts(4096, 16, 2), (std::array{8, 8}));
  EXPECT_EQ(parts(14336, 16, 2), (std::array{8, 8}));
  EXPECT_EQ(parts(4096, 64, 4), (std::array{8, 1}));
  // The product leaves room for it, unless its blocks are more than one a multiprocessor.
  const HopperRowsPlan plan = plan_hopper_rows(64, 4096, 4096, 16, 2, kH200);
  EXPECT_LE(plan.shared_bytes + plan.shrink_shared_bytes + 2048, kH200.shared_bytes);
  EXPECT_LE(plan_hopper_rows(64, 14336, 4096, 16, 2, kH200).shared_bytes, kH200.shared_bytes / 2);
}

// Of every shape: blocks have a ring that shared memory has room for, which what a block leaves for
// its cluster fits into, and run at once where K is cut.
TEST(HopperRowsPlan, FitsTheDevice) {
  const std::array<std::int64_t, 7> sizes{1, 8, 129, 1000, 4096, 14336, 100000};
  for (const DeviceFacts& facts : {kH200, kH100Pcie}) {
    for (const std::int64_t m : {1, 8, 64, 65, 128, 129, 256}) {
      for (const std::int64_t n : sizes) {
        for (const std::int64_t k : sizes) {
          for (const std::int64_t rank : {0, 1, 16, 17, 33, 64}) {
            for (const int bytes : {2, 4}) {
              const HopperRowsPlan plan = plan_hopper_rows(m, n, k, rank, bytes, facts);
              SCOPED_TRACE(testing::Message() << m << ' ' << n << ' ' << k << ' ' << rank);
              EXPECT_GE(plan.row_tiles * plan.tile_rows, m);
              EXPECT_GE(plan.column_tiles * plan.tile_columns, n);
              EXPECT_LT((plan.column_tiles - 1) * plan.tile_columns, n);
              EXPECT_GE(plan.rank_columns, rank);
              EXPECT_LE(plan.shared_bytes, facts.shared_bytes);
              EXPECT_GE(plan.slots, 3);
              EXPECT_LE(plan.slots, hopper_rows::kMostSlots);
              EXPECT_GE(plan.slots * plan.slot_bytes, plan.tile_rows * plan.tile_columns * 4);
              EXPECT_GE(plan.box_rows, std::min<std::int64_t>(m, plan.tile_rows));
              // The matrix units read a tile's rows of x, of which W's slot has what is too many.
              EXPECT_LE((plan.tile_rows - plan.box_rows) * hopper_rows::kRowBytes,
                        plan.tile_columns * hopper_rows::kRowBytes);
              EXPECT_LE(plan.splits, (k + hopper_rows::kStep - 1) / hopper_rows::kStep);
              EXPECT_EQ(plan.shrink_parts > 0, rank > 0);
              EXPECT_LE(plan.shrink_parts, hopper_rows::kMostShrinkParts);
              EXPECT_LE(plan.shrink_shared_bytes, 68 << 10);
              if (plan.splits > 1) {
                EXPECT_LE(plan.row_tiles * plan.column_tiles * plan.splits, facts.multiprocessors);
              }
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace graft::cuda
