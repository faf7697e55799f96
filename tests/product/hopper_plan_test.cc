#include <gtest/gtest.h>

#include <array>
#include <cstdint>

#include "product/cuda/hopper.h"

namespace graft::cuda {
namespace {

constexpr DeviceFacts kH200{9, 0, 132, 232448, 52428800};
constexpr DeviceFacts kH100Pcie{9, 0, 114, 232448, 52428800};

TEST(HopperPlan, WideTilesWhereThereAreMany) {
  const HopperPlan plan = plan_hopper(4096, 4096, 4096, 0, kH200);
  EXPECT_EQ(plan.tile_n, 256);
  EXPECT_EQ(plan.tiles(), 256);
  EXPECT_EQ(plan.clusters, 66);
  EXPECT_EQ(plan.light_clusters, 8);  // 58 of 4 tiles, 8 of 3
  EXPECT_EQ(plan.rank_class, 0);
}

TEST(HopperPlan, NarrowTilesWhereWideOnesLeaveBlocksIdle) {
  EXPECT_EQ(plan_hopper(512, 4096, 4096, 0, kH200).tile_n, 128);
  EXPECT_EQ(plan_hopper(512, 4096, 4096, 128, kH200).tile_n, 128);
  EXPECT_EQ(plan_hopper(256, 4096, 4096, 0, kH200).tile_n, 64);
  // No registers for a wider h there.
  EXPECT_EQ(plan_hopper(512, 4096, 4096, 129, kH200).tile_n, 256);
  EXPECT_EQ(plan_hopper(512, 14336, 4096, 0, kH200).tile_n, 256);
}

TEST(HopperPlan, LightClustersMakeH) {
  const HopperPlan plan = plan_hopper(4096, 4096, 4096, 16, kH200);
  EXPECT_EQ(plan.rank_class, 16);
  EXPECT_EQ(plan.heavy_items, 0);
  EXPECT_GE(plan.light_items * plan.light_clusters, plan.items());
}

TEST(HopperPlan, AllHelpWhereNoneIsLight) {
  const HopperPlan plan = plan_hopper(8448, 4096, 4096, 16, kH200);
  EXPECT_EQ(plan.light_clusters, 0);
  EXPECT_EQ(plan.heavy_items, 1);
  EXPECT_GT(plan.h_every, 0);  // beside their first tiles
  // Which have no time for outer products then.
  EXPECT_EQ(plan_hopper_outer(plan, 4096, 64).every, 0);
}

TEST(HopperPlan, RankClasses) {
  const std::array<std::array<std::int64_t, 2>, 8> known{
      {{1, 16}, {16, 16}, {17, 64}, {64, 64}, {65, 128}, {128, 128}, {129, 256}, {256, 256}}};
  for (const auto& [rank, expected] : known) {
    EXPECT_EQ(plan_hopper(4096, 4096, 4096, rank, kH200).rank_class, expected) << rank;
  }
}

// Of every shape: each block has a multiprocessor, and all of h is made.
TEST(HopperPlan, SharesAllWorkOut) {
  const std::array<std::int64_t, 9> sizes{1, 8, 129, 256, 1000, 2048, 4095, 8448, 100000};
  for (const DeviceFacts& facts : {kH200, kH100Pcie}) {
    for (const std::int64_t m : sizes) {
      for (const std::int64_t n : sizes) {
        for (const std::int64_t rank : {0, 1, 16, 60, 256}) {
          const HopperPlan plan = plan_hopper(m, n, 4096, rank, facts);
          SCOPED_TRACE(testing::Message() << m << " " << n << " " << rank);
          ASSERT_GE(plan.clusters, 1);
          ASSERT_LE(plan.clusters * 2, facts.multiprocessors);
          ASSERT_LT(plan.light_clusters, plan.clusters);
          ASSERT_GE(plan.tile_rows * 256, m);
          ASSERT_GE(plan.tile_cols * plan.tile_n, n);
          if (rank == 0) continue;
          ASSERT_GE(plan.rank_class, rank);
          ASSERT_LE(plan.rank_class, plan.tile_n);
          const std::int64_t heavy = plan.clusters - plan.light_clusters;
          ASSERT_GE(plan.light_items * plan.light_clusters + plan.heavy_items * heavy,
                    plan.items());
        }
      }
    }
  }
}

TEST(HopperPlan, OuterProductsBesideTiles) {
  for (const std::int64_t m : {4096, 8192, 5000}) {
    const HopperPlan plan = plan_hopper(m, 4096, 4096, 16, kH200);
    const HopperOuterPlan outer = plan_hopper_outer(plan, 4096, 64);
    ASSERT_GT(outer.every, 0) << m;
    EXPECT_EQ(outer.units, 64 * plan.tile_rows);
    // The lightest cluster has time for the longest run, after its first tile.
    const std::int64_t each = (outer.units + plan.clusters - 1) / plan.clusters;
    EXPECT_GE((plan.tiles() / plan.clusters - 1) * (63 / outer.every), each) << m;
  }
  // One tile a cluster leaves no time; neither does a wider rank have room.
  EXPECT_EQ(plan_hopper_outer(plan_hopper(512, 4096, 4096, 16, kH200), 4096, 64).every, 0);
  EXPECT_EQ(plan_hopper_outer(plan_hopper(4096, 4096, 4096, 17, kH200), 4096, 64).every, 0);
}

class HopperTakes : public testing::Test {
 protected:
  static constexpr Device kDevice{DeviceType::kCuda, 0};

  Term term(std::int64_t m, std::int64_t n, std::int64_t k, DType dtype = DType::kBFloat16) {
    Term term;
    term.x = ConstTensorView(memory_, dtype, {m, k}, kDevice);
    term.w = ConstTensorView(memory_, dtype, {n, k}, kDevice).transposed();
    term.y = TensorView(memory_, dtype, {m, n}, kDevice);
    term.multiply = dtype;
    return term;
  }

  alignas(16) unsigned char memory_[16];
};

TEST_F(HopperTakes, HalfTypesWithAlignedRows) {
  EXPECT_TRUE(hopper_takes(term(100, 264, 72), kH200));
  EXPECT_TRUE(hopper_takes(term(100, 264, 72, DType::kFloat16), kH200));
  EXPECT_FALSE(hopper_takes(term(100, 264, 72, DType::kFloat32), kH200));
  EXPECT_FALSE(hopper_takes(term(100, 264, 73), kH200));
  EXPECT_FALSE(hopper_takes(term(100, 261, 72), kH200));
}

TEST_F(HopperTakes, BothOrdersOfW) {
  Term backward = term(100, 264, 72);
  backward.w = ConstTensorView(memory_, DType::kBFloat16, {72, 264}, kDevice);
  EXPECT_TRUE(hopper_takes(backward, kH200));
}

TEST_F(HopperTakes, OnlyHopper) {
  EXPECT_FALSE(hopper_takes(term(100, 264, 72), DeviceFacts{8, 0, 108, 166912, 41943040}));
  EXPECT_FALSE(hopper_takes(term(100, 264, 72), DeviceFacts{12, 0, 170, 101376, 100663296}));
}

TEST_F(HopperTakes, DropoutOfSmallRanks) {
  const Dropout dropout{0.1f};
  const auto pair = [&](Term term, std::int64_t rank) {
    term.pair.shrink = ConstTensorView(memory_, DType::kBFloat16, {term.w.dim(0), rank}, kDevice);
    term.pair.expand = ConstTensorView(memory_, DType::kBFloat16, {rank, term.w.dim(1)}, kDevice);
    return term;
  };
  const auto forward = [&](std::int64_t m, std::int64_t n, std::int64_t k, std::int64_t rank) {
    Term term = pair(this->term(m, n, k), rank);
    term.pair.input_dropout = &dropout;
    return term;
  };
  const auto backward = [&](std::int64_t m, std::int64_t n, std::int64_t k, std::int64_t rank) {
    Term term = this->term(m, n, k);
    term.w = ConstTensorView(memory_, DType::kBFloat16, {k, n}, kDevice);
    term = pair(term, rank);
    term.pair.output_dropout = &dropout;
    return term;
  };
  for (const std::int64_t m : {512, 4095, 8192}) {
    for (const std::int64_t rank : {1, 13, 16}) {
      EXPECT_TRUE(hopper_takes(forward(m, 4096, 4096, rank), kH200));
      EXPECT_TRUE(hopper_takes(backward(m, 4096, 4096, rank), kH200));
      EXPECT_LE(hopper_workspace_bytes(forward(m, 4096, 4096, rank), kH200), std::size_t{32} << 20);
    }
    EXPECT_FALSE(hopper_takes(forward(m, 4096, 4096, 17), kH200));
    EXPECT_FALSE(hopper_takes(backward(m, 4096, 4096, 17), kH200));
  }
  // A group of eight elements has one counter: it must not go round the end of a row.
  Term odd = forward(4096, 4096, 4096, 16);
  odd.x = ConstTensorView(memory_, DType::kBFloat16, std::array<std::int64_t, 2>{4096, 4095},
                          std::array<std::int64_t, 2>{4096, 1}, kDevice);
  EXPECT_FALSE(hopper_takes(odd, kH200));
  // Few tiles; and a W that lies the other way.
  EXPECT_FALSE(hopper_takes(forward(64, 4096, 4096, 16), kH200));
  Term turned = forward(4096, 4096, 4096, 16);
  turned.w = ConstTensorView(memory_, DType::kBFloat16, {4096, 4096}, kDevice);
  EXPECT_FALSE(hopper_takes(turned, kH200));
}

TEST_F(HopperTakes, OuterProductsOfMaskedRowsBesideTiles) {
  const Dropout dropout{0.1f}, other{0.1f};
  Term term = this->term(4096, 4096, 4096);
  const auto matrix = [&](std::int64_t rows, std::int64_t cols) {
    return ConstTensorView(memory_, DType::kBFloat16, {rows, cols}, kDevice);
  };
  term.w = matrix(4096, 4096);
  term.pair.shrink = matrix(4096, 16), term.pair.expand = matrix(16, 4096);
  term.pair.output_dropout = &dropout;
  const TensorView out(memory_, DType::kFloat32, {16, 4096}, kDevice);
  term.outer_products.push_back({{}, matrix(4096, 4096), &dropout, 1.0f, out});
  term.outer_products.push_back({matrix(4096, 16), matrix(4096, 4096), nullptr, 1.0f, out});
  EXPECT_TRUE(hopper_makes_outer(term, kH200));
  term.outer_products.front().dropout = &other;  // not the masks that the tiles have
  EXPECT_FALSE(hopper_makes_outer(term, kH200));
  std::swap(term.outer_products[0], term.outer_products[1]);
  term.outer_products.back().dropout = &dropout;
  EXPECT_FALSE(hopper_makes_outer(term, kH200));
}

TEST_F(HopperTakes, NeitherMisalignedNorMissing) {
  Term shifted = term(100, 264, 72);
  shifted.x = ConstTensorView(memory_ + 2, DType::kBFloat16, {100, 72}, kDevice);
  EXPECT_FALSE(hopper_takes(shifted, kH200));
  Term none = term(100, 264, 72);
  none.w = {};
  EXPECT_FALSE(hopper_takes(none, kH200));
  Term added = term(100, 264, 72);
  added.accumulate = true;
  EXPECT_FALSE(hopper_takes(added, kH200));
}

}  // namespace
}  // namespace graft::cuda
