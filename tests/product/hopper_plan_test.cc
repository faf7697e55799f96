#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "product/cuda/hopper.h"
#include "product/cuda/hopper_shrink.h"
#include "support/gpus.h"

namespace graft::cuda {
namespace {

using test::kH100Pcie, test::kH200;
constexpr DeviceFacts kSeventh{9,      0,        16,
                               232448, 52428800, {0, 16, 7}};  // a part of one, with lone ones

// dA and dB of 4096 features.
constexpr std::array<HopperOuterShape, 2> kBoth{{{4096, true}, {4096, false}}};

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
  EXPECT_EQ(plan_hopper(512, 4096, 4096, 256, kH200).tile_n, 128);
  EXPECT_EQ(plan_hopper(512, 14336, 4096, 0, kH200).tile_n, 256);
}

TEST(HopperPlan, LightClustersMakeH) {
  const HopperPlan plan = plan_hopper(4096, 4096, 4096, 16, kH200);
  EXPECT_EQ(plan.rank_class, 16);
  EXPECT_EQ(plan.heavy_items, 0);
  EXPECT_EQ(plan.light_rows(), plan.tile_rows);
}

TEST(HopperPlan, AllHelpWhereNoneIsLight) {
  const HopperPlan plan = plan_hopper(8448, 4096, 4096, 16, kH200);
  EXPECT_EQ(plan.light_clusters, 0);
  EXPECT_EQ(plan.heavy_items, 1);
  EXPECT_GT(plan.h_every, 0);  // beside their first tiles
  // Which leave all of their own tiles' time to outer products, but the first.
  const HopperOuterPlan outer = plan_hopper_outer(plan, 4096, kBoth);
  EXPECT_GT(outer.every, 0);
  EXPECT_EQ(outer.of_first_tile, 0);
}

// h of wide ranks: of every shape all parts of K have steps, and clusters are no larger than any
// device has.
TEST(HopperPlan, WideRanksAreSharedOut) {
  for (const std::int64_t m : {1, 129, 512, 4096, 8448, 100000}) {
    for (const std::int64_t k : {8, 72, 1000, 4096}) {
      for (const std::int64_t rank : {17, 64, 65, 128, 129, 256}) {
        const HopperShrinkPlan plan = plan_hopper_shrink(m, k, rank, kH200);
        SCOPED_TRACE(testing::Message() << m << " " << k << " " << rank);
        ASSERT_GE(plan.width, rank);
        ASSERT_LE(plan.cluster(), 8);
        ASSERT_LE(plan.splits, (k + 63) / 64);
        ASSERT_GE(plan.clusters * plan.pair * 128, m);
      }
    }
  }
  // Not all of 32 clusters of four run at once on an H200: 96 blocks that do are better.
  EXPECT_LE(plan_hopper_shrink(4096, 4096, 256, kH200).cluster(), 6);
}

// The product of 4096 rows and columns has 256 tiles for 66 clusters: eight have a tile less.
TEST(HopperPlan, WideRanksAreMadeWholeWhereThereIsRoom) {
  constexpr HopperShrinkRoom kRoom{16, 256};
  for (const std::int64_t m : {129, 2048, 4000, 4096, 8192}) {
    for (const std::int64_t rank : {17, 64, 65, 128, 129, 256}) {
      const HopperShrinkPlan plan = plan_hopper_shrink(m, 4096, rank, kH200, kRoom);
      SCOPED_TRACE(testing::Message() << m << " " << rank);
      ASSERT_LE(plan.whole_clusters * plan.cluster(), kRoom.blocks);
      ASSERT_LE(plan.blocks * plan.width, kRoom.tile_n);
      const std::int64_t others = plan.clusters - plan.whole_clusters;
      if (plan.blocks == 2) {
        ASSERT_EQ(others, 0);
      }
      ASSERT_GE((plan.whole_clusters * plan.cluster() * plan.blocks + others * plan.pair) * 128, m);
      ASSERT_GE(plan.s_box_rows(false), 8);  // what TMA swizzles
    }
  }
  EXPECT_EQ(plan_hopper_shrink(2048, 4096, 128, kH200, kRoom).blocks, 1);
  EXPECT_EQ(plan_hopper_shrink(4096, 4096, 128, kH200, kRoom).blocks, 2);
  // Of 256 columns half is as much work as a tile for each.
  const HopperShrinkPlan half = plan_hopper_shrink(4096, 4096, 256, kH200, kRoom);
  EXPECT_EQ(half.whole_clusters, 2);
  EXPECT_EQ(half.clusters, 10);
  EXPECT_EQ(plan_hopper_shrink(4096, 4096, 256, kH200).whole_clusters, 0);
  EXPECT_EQ(plan_hopper_shrink(4096, 4096, 256, kH200, {16, 128}).whole_clusters, 0);
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
  for (const DeviceFacts& facts : {kH200, kH100Pcie, kSeventh}) {
    for (const std::int64_t m : sizes) {
      for (const std::int64_t n : sizes) {
        for (const std::int64_t rank : {0, 1, 16, 60, 256}) {
          const HopperPlan plan = plan_hopper(m, n, 4096, rank, facts);
          SCOPED_TRACE(testing::Message() << m << " " << n << " " << rank);
          ASSERT_GE(plan.clusters, 1);
          ASSERT_LE(plan.clusters, facts.clusters_of[2]);
          ASSERT_LT(plan.light_clusters, plan.clusters);
          ASSERT_GE(plan.tile_rows * 256, m);
          ASSERT_GE(plan.tile_cols * plan.tile_n + plan.ragged, n);
          if (rank == 0) continue;
          ASSERT_GE(plan.rank_class, rank + plan.ragged);
          ASSERT_EQ(plan.h_before, rank > 64);
          if (plan.h_before) continue;
          ASSERT_LE(plan.rank_class, plan.tile_n);
          ASSERT_GE(plan.light_items * plan.light_clusters, plan.light_rows() * plan.light_parts);
          const std::int64_t heavy = plan.clusters - plan.light_clusters;
          ASSERT_GE(plan.heavy_items * heavy, plan.heavy_items_of_all());
          if (plan.h_every == 0) continue;
          const std::int64_t units = plan.heavy_items * ((32 + plan.h_parts - 1) / plan.h_parts);
          ASSERT_LT(plan.h_first + (units - 1) * plan.h_every, 64);
        }
      }
    }
  }
}

// A column of tiles for eight columns of y would make five rounds of four.
TEST(HopperPlan, AFewColumnsAreMadeWithH) {
  constexpr HopperBesides kRagged{.ragged = true};
  for (const std::int64_t rank : {0, 13, 16}) {
    const std::array<std::int64_t, 1> width{4104};
    const HopperPlan plan = plan_hopper(4095, width, 4088, rank, kH200, kRagged);
    EXPECT_EQ(plan.ragged, 8);
    EXPECT_EQ(plan.tile_n, 256);
    EXPECT_EQ(plan.tile_cols, 16);
    EXPECT_EQ(plan.rank_class, 32);
    EXPECT_EQ(plan.light_rows(), plan.tile_rows);
    EXPECT_EQ(plan_hopper(4095, width, 4088, rank, kH200).ragged, 0);  // not with outer products
  }
  for (const std::array<std::int64_t, 1> width : {std::array<std::int64_t, 1>{4096}, {4120}}) {
    EXPECT_EQ(plan_hopper(4095, width, 4088, 13, kH200, kRagged).ragged, 0) << width[0];
  }
  const std::array<std::int64_t, 2> widths{4104, 4104};
  EXPECT_EQ(plan_hopper(4095, widths, 4088, 13, kH200, kRagged).ragged, 0);
  EXPECT_EQ(plan_hopper(4095, {widths.data(), 1}, 4088, 17, kH200, kRagged).ragged, 0);
}

TEST(HopperPlan, IdleClustersMakeHInParts) {
  for (const std::int64_t m : {129, 256}) {
    const HopperPlan plan = plan_hopper(m, 4096, 4096, 16, kH200);
    EXPECT_LE(plan.tiles(), 64);
    EXPECT_GT(plan.light_parts, 1);
    EXPECT_EQ(plan.light_parts, plan.h_parts);
    EXPECT_EQ(plan.light_clusters, plan.clusters - plan.tiles());
    EXPECT_EQ(plan.light_rows(), 1);
    EXPECT_EQ(plan.heavy_items, 0);
    EXPECT_EQ(plan.items_in_parts(), plan.light_parts);
  }
}

TEST(HopperPlan, OthersHelpWhereTheLightHaveNoTimeForAll) {
  const HopperPlan plan = plan_hopper(8192, 2048, 2048, 16, kH200);
  EXPECT_EQ(plan.light_clusters, 8);
  EXPECT_GT(plan.light_rows(), 0);
  EXPECT_GT(plan.heavy_items_of_all(), 0);
  EXPECT_GT(plan.h_every, 0);
}

// Each cluster's tiles have room for its units, in the order that h allows.
void expect_room(const HopperPlan& plan, std::int64_t k, const HopperOuterPlan& outer) {
  ASSERT_GT(outer.every, 0);
  const auto each = [&](int i) {
    return (outer.units[i] + outer.workers[i] - 1) / outer.workers[i];
  };
  const std::int64_t made = each(0), given = each(1), steps = (k + 63) / 64;
  const std::int64_t tiles = plan.tiles() / plan.clusters;
  if (outer.late) {
    EXPECT_LE(given, outer.of_first_tile);
    EXPECT_LT(outer.first + (given - 1) * outer.every, steps + 1 - 2 * made);
  } else {
    EXPECT_GE((tiles - 1) * outer.of_tile,
              made + std::max<std::int64_t>(0, given - outer.of_first_tile));
  }
  EXPECT_LT(outer.of_tile * outer.every, steps);
  EXPECT_EQ(outer.order[0], 1u);
}

TEST(HopperPlan, OuterProductsBesideTiles) {
  for (const std::int64_t m : {512, 1000, 4096, 8192, 8448, 5000}) {
    SCOPED_TRACE(m);
    const HopperPlan plan = plan_hopper(m, 4096, 4096, 16, kH200);
    const HopperOuterPlan outer = plan_hopper_outer(plan, 4096, kBoth);
    expect_room(plan, 4096, outer);
    const std::int64_t columns = plan.tile_n == 256 ? 128 : 64;
    EXPECT_EQ(outer.units[0], 4096 / columns * plan.tile_rows);
  }
  // Of an only tile each cluster makes whole column blocks, where there are no more than clusters.
  const HopperPlan few = plan_hopper(512, 4096, 4096, 16, kH200);
  const HopperOuterPlan in_cluster = plan_hopper_outer(few, 4096, kBoth);
  EXPECT_TRUE(in_cluster.in_cluster);
  EXPECT_EQ(in_cluster.workers[0], 4096 / 64);
  EXPECT_GT(in_cluster.ahead, 0);
  constexpr std::array<HopperOuterShape, 2> kWider{{{4096, true}, {8192, false}}};
  EXPECT_FALSE(plan_hopper_outer(few, 8192, kWider).in_cluster);
  // h is there when its first unit comes, and there is room for two cluster rows alone.
  EXPECT_GE(64 - 1 - in_cluster.ahead - in_cluster.apart, 64 * 3 / 5);
  constexpr std::array<HopperOuterShape, 2> kRows{{{2048, true}, {3000, false}}};
  EXPECT_FALSE(plan_hopper_outer(plan_hopper(640, 2048, 3000, 16, kH200), 3000, kRows).in_cluster);
  constexpr std::array<HopperOuterShape, 2> kNarrow{{{2048, true}, {2048, false}}};
  const HopperPlan plan = plan_hopper(8192, 2048, 2048, 16, kH200);
  expect_room(plan, 2048, plan_hopper_outer(plan, 2048, kNarrow));
  // That of x with given coefficients needs no units where light clusters make all of h.
  constexpr std::array<HopperOuterShape, 2> kOfX{{{4096, true}, {4096, false, true}}};
  const HopperPlan light = plan_hopper(4096, 4096, 4096, 16, kH200);
  const HopperOuterPlan rides = plan_hopper_outer(light, 4096, kOfX);
  EXPECT_TRUE(rides.rides);
  EXPECT_EQ(rides.units[1], 0);
  EXPECT_EQ(rides.column_blocks, 4096 / 128);
  EXPECT_GT(rides.every, plan_hopper_outer(light, 4096, kBoth).every);
  EXPECT_FALSE(plan_hopper_outer(plan_hopper(8448, 4096, 4096, 16, kH200), 4096, kOfX).rides);
  // A wider rank has no room.
  EXPECT_EQ(plan_hopper_outer(plan_hopper(4096, 4096, 4096, 17, kH200), 4096, kBoth).every, 0);
}

TEST(HopperPlan, SiblingsLieBesideEachOther) {
  constexpr std::array<std::int64_t, 3> kWidths{4096, 1024, 1000};
  const HopperPlan plan = plan_hopper(4096, kWidths, 4096, 48, kH200);
  EXPECT_EQ(plan.tile_cols, 24);
  EXPECT_EQ(plan.rank_class, 64);
  EXPECT_EQ(plan.light_clusters, 12);
  EXPECT_EQ(plan.light_rows(), 16);
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

  ConstTensorView matrix(std::int64_t rows, std::int64_t cols) const {
    return ConstTensorView(memory_, DType::kBFloat16, {rows, cols}, kDevice);
  }

  // All gradients of a layer of 4096²: dx, dA and dB.
  Term gradients(std::int64_t m, std::int64_t rank, const Dropout* dropout = nullptr) {
    Term term = this->term(m, 4096, 4096);
    term.w = matrix(4096, 4096);
    term.pair.shrink = matrix(4096, rank), term.pair.expand = matrix(rank, 4096);
    term.pair.output_dropout = dropout;
    const TensorView out(memory_, DType::kFloat32, {rank, 4096}, kDevice);
    term.outer_products.push_back({{}, matrix(m, 4096), dropout, 1.0f, out});
    term.outer_products.push_back({matrix(m, rank), matrix(m, 4096), nullptr, 1.0f, out});
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
  backward.w = matrix(72, 264);
  EXPECT_TRUE(hopper_takes(backward, kH200));
}

TEST_F(HopperTakes, TermsOfOneXTogether) {
  std::vector<Term> terms{term(100, 264, 72), term(100, 72, 72), term(100, 8, 72),
                          term(100, 8, 72)};
  EXPECT_EQ(hopper_takes_together(terms), 3u);
  EXPECT_EQ(hopper_takes_together(std::span(terms).first(2)), 2u);
  const auto with_rank = [&](Term& of, std::int64_t rank) {
    of.pair.shrink = matrix(72, rank);
    of.pair.expand = matrix(rank, of.y.dim(1));
  };
  with_rank(terms[0], 13), with_rank(terms[1], 200);
  EXPECT_EQ(hopper_ranks(terms), 216);
  EXPECT_EQ(hopper_takes_together(terms), 3u);
  with_rank(terms[2], 33);  // 224 + 33 columns of h: one too many
  EXPECT_EQ(hopper_takes_together(terms), 2u);
  terms[1].outer_products.emplace_back();
  EXPECT_EQ(hopper_takes_together(terms), 1u);
  terms[1].outer_products.clear();
  terms[1].x = matrix(100, 72).transposed().transposed();
  EXPECT_EQ(hopper_takes_together(terms), 2u);  // the same view
  terms[1].w = matrix(72, 72);
  EXPECT_EQ(hopper_takes_together(terms), 1u);  // W the other way
}

TEST_F(HopperTakes, OnlyHopper) {
  EXPECT_FALSE(hopper_takes(term(100, 264, 72), DeviceFacts{8, 0, 108, 166912, 41943040}));
  EXPECT_FALSE(hopper_takes(term(100, 264, 72), DeviceFacts{12, 0, 170, 101376, 100663296}));
}

TEST_F(HopperTakes, Dropout) {
  const Dropout dropout{0.1f};
  const auto pair = [&](Term term, std::int64_t rank) {
    term.pair.shrink = matrix(term.w.dim(0), rank);
    term.pair.expand = matrix(rank, term.w.dim(1));
    return term;
  };
  const auto forward = [&](std::int64_t m, std::int64_t n, std::int64_t k, std::int64_t rank) {
    Term term = pair(this->term(m, n, k), rank);
    term.pair.input_dropout = &dropout;
    return term;
  };
  const auto backward = [&](std::int64_t m, std::int64_t n, std::int64_t k, std::int64_t rank) {
    Term term = this->term(m, n, k);
    term.w = matrix(k, n);
    term = pair(term, rank);
    term.pair.output_dropout = &dropout;
    return term;
  };
  const auto bytes_of = [](const Term& term) { return hopper_workspace_bytes({&term, 1}, kH200); };
  for (const std::int64_t m : {512, 4095, 8192}) {
    for (const std::int64_t rank : {1, 13, 16}) {
      EXPECT_TRUE(hopper_takes(forward(m, 4096, 4096, rank), kH200));
      EXPECT_TRUE(hopper_takes(backward(m, 4096, 4096, rank), kH200));
      EXPECT_LE(bytes_of(forward(m, 4096, 4096, rank)), std::size_t{32} << 20);
    }
    for (const std::int64_t rank : {17, 64, 128, 256}) {
      for (const Term& term : {forward(m, 4096, 4096, rank), backward(m, 4096, 4096, rank)}) {
        EXPECT_TRUE(hopper_takes(term, kH200));
        EXPECT_TRUE(plan_hopper({&term, 1}, kH200).h_before);
        EXPECT_LE(bytes_of(term), std::size_t{32} << 20);
      }
    }
  }
  // Few tiles: masks are for wider ones than 64 columns, so that x is masked before.
  for (const std::int64_t rank : {1, 16, 17, 256}) {
    EXPECT_TRUE(hopper_takes(forward(17, 4096, 4096, rank), kH200));
    EXPECT_TRUE(hopper_takes(backward(64, 4096, 4096, rank), kH200));
    EXPECT_FALSE(hopper_takes(backward(63, 4096, 4096, rank), kH200));
    const Term few = forward(256, 4096, 4096, rank), masked = backward(256, 4096, 4096, rank);
    EXPECT_EQ(plan_hopper({&few, 1}, kH200).tile_n, 64);
    EXPECT_TRUE(plan_hopper({&few, 1}, kH200).h_before);
    EXPECT_EQ(plan_hopper({&masked, 1}, kH200).tile_n, 128);
    EXPECT_EQ(plan_hopper({&masked, 1}, kH200).h_before, rank > 16);
  }
  // A group of eight elements has one counter: it must not go round the end of a row.
  Term odd = forward(4096, 4096, 4096, 16);
  odd.x = ConstTensorView(memory_, DType::kBFloat16, std::array<std::int64_t, 2>{4096, 4095},
                          std::array<std::int64_t, 2>{4096, 1}, kDevice);
  EXPECT_FALSE(hopper_takes(odd, kH200));
  // And a W that lies the other way.
  Term turned = forward(4096, 4096, 4096, 16);
  turned.w = matrix(4096, 4096);
  EXPECT_FALSE(hopper_takes(turned, kH200));
}

TEST_F(HopperTakes, OuterProductsOfMaskedRowsBesideTiles) {
  const Dropout dropout{0.1f}, other{0.1f};
  Term term = gradients(4096, 16, &dropout);
  EXPECT_EQ(hopper_outer_way(term, kH200), OuterWay::kBeside);
  Term wide = term;
  wide.pair.shrink = matrix(4096, 17), wide.pair.expand = matrix(17, 4096);
  EXPECT_EQ(hopper_outer_way(wide, kH200), OuterWay::kAfter);
  wide.outer_products.front().dropout = &other;
  EXPECT_EQ(hopper_outer_way(wide, kH200), OuterWay::kNone);
  term.outer_products.front().dropout = &other;  // not the masks that the tiles have
  EXPECT_FALSE(hopper_makes_outer(term, kH200));
  std::swap(term.outer_products[0], term.outer_products[1]);
  term.outer_products.back().dropout = &dropout;
  EXPECT_FALSE(hopper_makes_outer(term, kH200));
}

TEST_F(HopperTakes, OuterProductsBesideTilesOrAfterThem) {
  // Many tiles; one a cluster; narrow ones, of which 512 rows leave column blocks whole.
  for (const auto& [m, rank] : {std::pair{4096, 16},
                                {4096, 17},
                                {4096, 64},
                                {4096, 256},
                                {3000, 1},
                                {512, 16},
                                {2048, 16},
                                {1280, 16}}) {
    Term term = gradients(m, rank);
    const bool beside = rank <= 16 && (m >= 3000 || m == 512);
    const OuterWay way = beside ? OuterWay::kBeside : OuterWay::kAfter;
    EXPECT_EQ(hopper_outer_way(term, kH200), way) << m << ' ' << rank;
    term.outer_products.push_back(term.outer_products.back());
    EXPECT_EQ(hopper_outer_way(term, kH200), OuterWay::kNone) << m << ' ' << rank;
  }
}

TEST_F(HopperTakes, NoDeviceWithoutClusters) {
  DeviceFacts lone = kH200;
  lone.clusters_of = {};
  EXPECT_FALSE(hopper_takes(term(100, 264, 72), lone));
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
