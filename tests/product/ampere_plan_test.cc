#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <string>

#include "product/cuda/ampere.h"
#include "product/cuda/few_rows.h"
#include "support/gpus.h"

// Plans of the mma.sync path are functions of shapes and of a device's facts: tested for every kind
// of GPU that it is for, none of which has to be here.

namespace graft::cuda {
namespace {

constexpr DType kF32 = DType::kFloat32, kF16 = DType::kFloat16, kBF16 = DType::kBFloat16;
constexpr Device kDevice{DeviceType::kCuda, 0};

using test::kA100, test::kH200;
constexpr DeviceFacts kRtx3090{8, 6, 82, 99 * 1024, 6 << 20};
constexpr DeviceFacts kL40{8, 9, 142, 99 * 1024, 96 << 20};
constexpr DeviceFacts kRtx5090{12, 0, 170, 99 * 1024, 96 << 20};
constexpr std::array kDevices{kA100, kRtx3090, kL40, kH200, kRtx5090};

TensorView matrix(DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t gap = 0,
                  std::uintptr_t address = 0x10000) {
  return {reinterpret_cast<void*>(address), dtype, std::array{rows, cols},
          std::array{cols + gap, std::int64_t{1}}, kDevice};
}

Term term_of(DType dtype, std::int64_t m, std::int64_t n, std::int64_t k, std::int64_t rank) {
  Term term;
  term.multiply = dtype;
  term.x = matrix(dtype, m, k), term.y = matrix(dtype, m, n);
  term.w = matrix(dtype, n, k).transposed();
  if (rank > 0) {
    term.pair.shrink = matrix(kF32, k, rank), term.pair.expand = matrix(kF32, rank, n);
  }
  return term;
}

AmperePlan plan(std::int64_t m, std::int64_t n, std::int64_t k, std::int64_t rank,
                const DeviceFacts& facts) {
  return plan_ampere(AmpereShape::of(term_of(kBF16, m, n, k, rank)), facts);
}

TEST(AmperePlan, CoversEveryShapeOnEveryDevice) {
  for (const DeviceFacts& facts : kDevices) {
    for (const std::int64_t m : {1, 17, 64, 127, 512, 4096, 8448, 100000}) {
      for (const std::int64_t n : {1, 255, 1024, 4096, 14336}) {
        for (const std::int64_t k : {0, 1, 63, 4088, 4096, 14336}) {
          for (const std::int64_t rank : {0, 1, 16, 17, 256}) {
            const AmperePlan p = plan(m, n, k, rank, facts);
            const auto ceil_div = [](std::int64_t a, std::int64_t b) { return (a + b - 1) / b; };
            ASSERT_EQ(p.tiles, ceil_div(m, 128) * ceil_div(n, p.tile_n));
            ASSERT_LE(p.shared_bytes, facts.shared_bytes);
            ASSERT_GE(p.splits, 1);
            // Every part has some of K, and together they have all of it.
            ASSERT_EQ(p.split_depth % 64, 0);
            ASSERT_GE(p.split_depth * p.splits, k);
            if (p.splits > 1) {
              ASSERT_LT(p.split_depth * (p.splits - 1), k);
              ASSERT_LE(p.tiles * p.splits, facts.multiprocessors);
            }
            // Blocks that make h beside tiles are ones that the last round of tiles has room for.
            ASSERT_LE((p.tiles + p.shrink_blocks - 1) / facts.multiprocessors,
                      (p.tiles - 1) / facts.multiprocessors);
            ASSERT_TRUE(rank > 0 || p.shrink_blocks == 0);
          }
        }
      }
    }
  }
}

TEST(AmperePlan, TakesWideTilesWhereTheyFitAndFillTheDevice) {
  EXPECT_EQ(plan(4096, 4096, 4096, 16, kA100).tile_n, 256);
  EXPECT_EQ(plan(4096, 4096, 4096, 16, kH200).tile_n, 256);
  for (const DeviceFacts& facts : {kRtx3090, kL40, kRtx5090}) {
    EXPECT_EQ(plan(4096, 4096, 4096, 16, facts).tile_n, 128);
  }
  EXPECT_EQ(plan(512, 4096, 4096, 16, kH200).tile_n, 128);
  Term odd = term_of(kBF16, 4096, 4096, 4095, 16);
  EXPECT_EQ(plan_ampere(AmpereShape::of(odd), kH200).tile_n, 128);
}

TEST(AmperePlan, CutsKWhereTilesAreFew) {
  EXPECT_GT(plan(64, 4096, 4096, 16, kH200).splits, 1);
  EXPECT_EQ(plan(4096, 4096, 4096, 16, kH200).splits, 1);
  EXPECT_EQ(plan(64, 4096, 64, 16, kH200).splits, 1);
  Term delta = term_of(kBF16, 64, 4096, 4096, 16);
  delta.w = {};
  EXPECT_EQ(plan_ampere(AmpereShape::of(delta), kH200).splits, 1);
}

TEST(AmperePlan, MakesHBesideTilesWhereTheLastRoundHasRoom) {
  EXPECT_EQ(plan(4096, 4096, 4096, 16, kH200).shrink_blocks, 16u);  // 512 tiles of 528
  EXPECT_EQ(plan(8448, 4096, 4096, 16, kH200).shrink_blocks, 0u);   // 1056 of 1056
  EXPECT_EQ(plan(4096, 4096, 4096, 256, kH200).shrink_blocks, 0u);  // more than they have time for
  EXPECT_EQ(plan(4096, 4096, 4096, 16, kA100).shrink_blocks, 28u);
  // What the pair adds is masked before the base is added: h has to be there first.
  Term masked = term_of(kBF16, 4096, 4096, 4096, 16);
  const Dropout dropout{0.1f};
  masked.pair.output_dropout = &dropout;
  EXPECT_EQ(plan_ampere(AmpereShape::of(masked), kH200).shrink_blocks, 0u);
}

TEST(AmperePlan, SharesCoverAllRows) {
  for (const DeviceFacts& facts : kDevices) {
    for (const std::int64_t m : {0, 1, 255, 4096, 100000}) {
      for (const std::int64_t blocks : {0, 1, 32, 1000}) {
        const AmpereShares shares = plan_ampere_outer(m, blocks, facts);
        EXPECT_EQ(shares.rows % 64, 0);
        EXPECT_GE(shares.rows * shares.count, m);
        EXPECT_LE(shares.rows * (shares.count - 1), m);
      }
    }
  }
}

TEST(AmperePlan, WorkspaceIsBounded) {
  for (const DeviceFacts& facts : kDevices) {
    for (const std::int64_t m : {1, 64, 100, 512, 8192}) {
      for (const std::int64_t rank : {0, 16, 256}) {
        EXPECT_LE(ampere_workspace(term_of(kBF16, m, 4096, 14336, rank), facts),
                  std::size_t{32} << 20);
        EXPECT_LE(ampere_workspace(term_of(kBF16, m, 14336, 4096, rank), facts),
                  std::size_t{32} << 20);
      }
    }
  }
}

TEST(AmpereTakes, HalfTypesOfAnyShapeAndStrides) {
  EXPECT_TRUE(ampere_takes(term_of(kBF16, 4096, 4096, 4096, 16)));
  EXPECT_TRUE(ampere_takes(term_of(kF16, 1, 1, 1, 256)));
  Term term = term_of(kBF16, 33, 65, 127, 3);
  term.x = term.x.transposed(), term.x = matrix(kBF16, 127, 33, 5, 0x10002).transposed();
  term.y = TensorView(reinterpret_cast<void*>(0x20000), kF32, {33, 65}, kDevice);
  EXPECT_TRUE(ampere_takes(term));
}

TEST(AmpereTakes, SaysWhyNot) {
  const auto reason = [](const Term& term) { return ampere_takes(term).reason; };
  Term term = term_of(kF32, 64, 64, 64, 0);
  EXPECT_EQ(reason(term), "multiplies in float32: the matrix units take float16 and bfloat16");
  term = term_of(kBF16, 64, 64, 64, 0);
  term.y = matrix(kF16, 64, 64);
  EXPECT_EQ(reason(term), "y: expected float32 or bfloat16, got float16");
  EXPECT_EQ(reason(term_of(kBF16, 64, 64, 64, 257)), "rank 257, at most 256");
}

TEST(FewRowsTakes, OneToSixteenAlignedRows) {
  for (const std::int64_t m : {1, 2, 16}) {
    EXPECT_TRUE(few_rows_takes(term_of(kBF16, m, 4096, 4096, 16)));
    EXPECT_TRUE(few_rows_takes(term_of(kF16, m, 1, 8, 0)));
  }
  EXPECT_EQ(few_rows_takes(term_of(kBF16, 17, 64, 64, 0)).reason, "17 rows");
  EXPECT_EQ(few_rows_takes(term_of(kBF16, 0, 64, 64, 0)).reason, "0 rows");
  EXPECT_FALSE(few_rows_takes(term_of(kBF16, 1, 64, 63, 0)));
  EXPECT_FALSE(few_rows_takes(term_of(kF32, 1, 64, 64, 0)));
  Term backward = term_of(kBF16, 1, 64, 64, 0);
  backward.w = matrix(kBF16, 64, 64);
  EXPECT_FALSE(few_rows_takes(backward));
  Term odd = term_of(kBF16, 2, 64, 64, 0);
  odd.x = matrix(kBF16, 2, 64, 1);
  EXPECT_FALSE(few_rows_takes(odd));
  Term delta = term_of(kBF16, 1, 64, 64, 4);
  delta.w = {};
  EXPECT_EQ(few_rows_takes(delta).reason, "no base product");
}

}  // namespace
}  // namespace graft::cuda
