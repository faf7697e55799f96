#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <tuple>
#include <utility>

#include "product/cuda/paths.h"
#include "support/gpus.h"

// Which kernels a term runs on: a function of shapes, types and strides, for any device.

namespace graft::cuda {
namespace {

constexpr DType kF32 = DType::kFloat32, kF16 = DType::kFloat16, kBF16 = DType::kBFloat16;
constexpr Device kDevice{DeviceType::kCuda, 0};

// Only addresses are looked at.
void* at(std::uintptr_t address) { return reinterpret_cast<void*>(address); }

TensorView matrix(DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t gap = 0,
                  std::uintptr_t address = 0x10000) {
  return {at(address), dtype, std::array{rows, cols}, std::array{cols + gap, std::int64_t{1}},
          kDevice};
}

Term delta(DType dtype, DType adapter, std::int64_t m, std::int64_t k, std::int64_t n,
           std::int64_t rank) {
  Term term;
  term.x = matrix(dtype, m, k), term.y = matrix(dtype, m, n);
  term.pair.shrink = matrix(adapter, k, rank), term.pair.expand = matrix(adapter, rank, n);
  term.multiply = dtype;
  return term;
}

using test::kH200;
constexpr DeviceFacts kLittleShared{.major = 8, .multiprocessors = 82, .shared_bytes = 99 * 1024};

std::string path(const Term& term, const DeviceFacts& facts = kH200) {
  return name_of(path_of(term, facts));
}

TEST(CudaPaths, DevicesBeforeAmpereAreRefused) {
  EXPECT_TRUE(supports_facts(0, {.major = 8, .minor = 0}));
  EXPECT_TRUE(supports_facts(0, {.major = 12, .minor = 0}));
  EXPECT_EQ(supports_facts(1, {.major = 7, .minor = 5}).reason,
            "cuda:1 has compute capability 7.5, the kernels need 8.0 (Ampere) or later");
}

TEST(CudaPaths, SmallDeltasTakeOneLaunch) {
  for (const DType dtype : {kF32, kF16, kBF16}) {
    for (const DType adapter : {kF32, dtype}) {
      for (const std::int64_t rows : {1, 32, 128, 8192, 16384}) {
        for (const std::int64_t rank : {4, 8, 12, 32}) {
          EXPECT_EQ(path(delta(dtype, adapter, rows, 512, 512, rank)), "small");
        }
      }
    }
  }
  Term term = delta(kF32, kF32, 128, 512, 512, 8);
  term.accumulate = true;
  term.pair.h = matrix(kF32, 128, 8);
  EXPECT_EQ(path(term), "small");
  EXPECT_EQ(small_bytes(term, kH200), 0u);
  // dA of the h that is made, and dB of a given one.
  OuterProduct da, db;
  da.matrix = matrix(kF32, 128, 520), da.out = matrix(kF32, 8, 520);
  db.matrix = term.x, db.out = matrix(kF32, 8, 512), db.coefficients = matrix(kF32, 128, 8);
  term.outer_products = {da, db};
  EXPECT_EQ(path(term), "small");
  term.pair.h = {};
  EXPECT_GE(small_bytes(term, kH200), std::size_t{128 * 8 * 4});
  for (const std::int64_t rows : {128, 16384}) {
    Term large = delta(kF32, kF32, rows, 4096, 4096, 32);
    large.outer_products = {da};
    large.outer_products[0].matrix = matrix(kF32, rows, 4096);
    large.outer_products[0].out = matrix(kF32, 32, 4096);
    EXPECT_EQ(path(large), "small");
    EXPECT_LE(small_bytes(large, kH200), std::size_t{8} << 20);
  }
  term.outer_products[0].matrix = matrix(kF32, 128, 520, 1);
  EXPECT_EQ(path(term), "general");
  term.outer_products.clear();
  // A and B may lie in any way.
  term.pair.shrink = term.pair.expand.transposed();
  EXPECT_EQ(path(term), "small");
}

// A and B go to shared memory whole, unless a block has so few rows that registers hold them.
TEST(CudaPaths, SmallDeltasFitSharedMemory) {
  EXPECT_EQ(path(delta(kF32, kF32, 32, 512, 512, 32), kLittleShared), "small");
  EXPECT_EQ(path(delta(kF32, kF32, 4 * 82, 512, 512, 32), kLittleShared), "small");
  EXPECT_EQ(path(delta(kF32, kF32, 4 * 82 + 1, 512, 512, 32), kLittleShared), "general");
  EXPECT_EQ(path(delta(kF32, kF32, 32, 512, 520, 32), kLittleShared), "general");
  EXPECT_EQ(path(delta(kF32, kF32, 512, 512, 512, 8), kLittleShared), "small");
  EXPECT_EQ(path(delta(kBF16, kF32, 8192, 512, 512, 32), kLittleShared), "small");
  for (const std::int64_t rows : {1, 133, 529, 4225, 16384}) {
    for (const DType dtype : {kF32, kBF16}) {
      EXPECT_EQ(path(delta(dtype, kF32, rows, 4096, 512, 32)), "small");
    }
  }
}

// Both sides of where reading x and A from L2 again and again costs more than launches.
TEST(CudaPaths, LargeDeltasTakeTheNextPath) {
  struct Side {
    DType dtype, adapter;
    std::int64_t k, n, rank, from;  // the first row count that is not small; 0: all are
  };
  for (const Side& side : {Side{kBF16, kBF16, 4096, 4096, 16, 1280},
                           {kF16, kF16, 4096, 4096, 8, 1280},
                           {kBF16, kBF16, 4096, 4096, 4, 0},  // A of 32 KB
                           {kBF16, kBF16, 2048, 4096, 16, 2560},
                           {kBF16, kBF16, 4096, 2048, 32, 2560},
                           {kBF16, kBF16, 2048, 4088, 32, 0},
                           {kBF16, kBF16, 4096, 1024, 32, 0},
                           {kBF16, kF32, 4096, 4096, 16, 512},
                           {kF16, kF32, 2048, 2048, 8, 2048},
                           {kBF16, kF32, 1024, 4096, 16, 2048},
                           {kBF16, kF32, 1024, 4096, 12, 0},
                           {kF32, kF32, 4096, 4096, 8, 1280},
                           {kF32, kF32, 4096, 4096, 4, 0},
                           {kF32, kF32, 4096, 4088, 32, 0}}) {
    const auto of = [&](std::int64_t rows) {
      return delta(side.dtype, side.adapter, rows, side.k, side.n, side.rank);
    };
    const std::string next = side.dtype == kF32 ? "general" : "ampere";
    const auto with_outer = [&](std::int64_t rows) {
      Term term = of(rows);
      term.outer_products.resize(2);
      term.outer_products[0].matrix = matrix(side.dtype, rows, side.n);
      term.outer_products[0].out = matrix(kF32, side.rank, side.n);
      term.outer_products[1].matrix = term.x;
      term.outer_products[1].out = matrix(kF32, side.rank, side.k);
      return term;
    };
    if (side.from == 0) {
      EXPECT_EQ(path(of(16384)), "small") << side.k << ' ' << side.n << ' ' << side.rank;
      EXPECT_EQ(path(with_outer(16384)), "small") << side.k << ' ' << side.n << ' ' << side.rank;
      continue;
    }
    EXPECT_EQ(path(of(side.from - 1)), "small") << side.k << ' ' << side.n << ' ' << side.rank;
    EXPECT_EQ(path(of(side.from)), next) << side.k << ' ' << side.n << ' ' << side.rank;
    Term adds = of(side.from);
    adds.accumulate = true;
    EXPECT_EQ(path(adds), side.dtype == kF32 ? "small" : "ampere");
    // dA and dB beside dx: at twice as many; in float32 never.
    EXPECT_EQ(path(with_outer(2 * side.from - 1)), "small") << side.k << ' ' << side.n;
    EXPECT_EQ(path(with_outer(2 * side.from)), side.dtype == kF32 ? "small" : "ampere");
  }
}

TEST(CudaPaths, OtherDeltasTakeTheGeneralOne) {
  for (const auto& [m, k, n, rank] : {std::array<std::int64_t, 4>{0, 512, 512, 8},
                                      {16385, 512, 512, 8},
                                      {128, 0, 512, 8},
                                      {128, 511, 512, 8},
                                      {128, 8192, 512, 8},
                                      {128, 512, 0, 8},
                                      {128, 512, 510, 8},
                                      {128, 512, 512, 6},
                                      {128, 512, 512, 36},
                                      {128, 512, 512, 256}}) {
    EXPECT_EQ(path(delta(kF32, kF32, m, k, n, rank)), "general") << m << k << n << rank;
  }
  EXPECT_EQ(path(delta(kF32, kBF16, 128, 512, 512, 8)), "general");
  EXPECT_EQ(path(delta(kBF16, kF16, 128, 512, 512, 8)), "ampere");
  const Dropout dropout{0.5f};
  const Term fits = delta(kF32, kF32, 128, 512, 512, 8);
  const auto changed = [&](auto change) {
    Term term = fits;
    change(term);
    return path(term);
  };
  EXPECT_EQ(changed([&](Term& t) { t.pair.input_dropout = &dropout; }), "general");
  EXPECT_EQ(changed([&](Term& t) { t.pair.output_dropout = &dropout; }), "general");
  EXPECT_EQ(changed([&](Term& t) { t.outer_products.emplace_back(); }), "general");
  EXPECT_EQ(changed([&](Term& t) { t.y = {}; }), "general");
  EXPECT_EQ(changed([&](Term& t) { t.y = matrix(kBF16, 128, 512); }), "general");
  EXPECT_EQ(changed([&](Term& t) { t.x = matrix(kF32, 128, 512, 1); }), "general");
  EXPECT_EQ(changed([&](Term& t) { t.x = matrix(kF32, 128, 512, 4); }), "small");
  EXPECT_EQ(changed([&](Term& t) { t.x = matrix(kF32, 128, 512, 0, 0x10004); }), "general");
}

TEST(CudaPaths, BaseProductsTakeThatOfTheirTypeAndDevice) {
  DeviceFacts ampere = kH200;
  ampere.major = 8;
  for (const DType dtype : {kF32, kF16, kBF16}) {
    Term term = delta(dtype, kF32, 4096, 4096, 4096, 16);
    term.w = matrix(dtype, 4096, 4096).transposed();
    EXPECT_EQ(path(term), dtype == kF32 ? "general" : "hopper");
    EXPECT_EQ(path(term, ampere), dtype == kF32 ? "general" : "ampere");
    term.pair = {};
    EXPECT_EQ(path(term), dtype == kF32 ? "general" : "hopper");
    EXPECT_EQ(path(term, ampere), dtype == kF32 ? "general" : "ampere");
    term.x = matrix(dtype, 4096, 4096, 1);  // no copy of 16 bytes takes it
    EXPECT_EQ(path(term), dtype == kF32 ? "general" : "ampere");
    term.x = matrix(dtype, 16, 4096), term.y = matrix(dtype, 16, 4096);
    EXPECT_EQ(path(term), dtype == kF32 ? "few_rows" : "hopper_rows");
    EXPECT_EQ(path(term, ampere), "few_rows");
    if (dtype == kF32) {
      EXPECT_EQ(path_of(term, kH200), Path::kFewFloats);
      term.w = matrix(dtype, 4096, 4096);  // rows of W along N
      EXPECT_EQ(path(term), "general");
    }
  }
}

TEST(CudaPaths, FewAndMiddlingRowsOnHopper) {
  const auto layer = [](std::int64_t m, std::int64_t n, std::int64_t rank, bool backward = false) {
    Term term = delta(kBF16, kF32, m, 4096, n, std::max<std::int64_t>(rank, 1));
    term.w = backward ? matrix(kBF16, 4096, n) : matrix(kBF16, n, 4096).transposed();
    if (rank == 0) term.pair = {};
    return term;
  };
  for (const std::int64_t m : {1, 2, 4, 5, 16, 17, 64, 128}) {
    EXPECT_EQ(path(layer(m, 4096, 0)), m <= 4 ? "few_rows" : "hopper_rows") << m;
    EXPECT_EQ(path(layer(m, 4096, 16)), m <= 1 ? "few_rows" : "hopper_rows") << m;
    EXPECT_EQ(path(layer(m, 4096, 16, true)), "hopper_rows") << m;
  }
  EXPECT_EQ(path(layer(129, 4096, 16)), "hopper");
  EXPECT_EQ(path(layer(128, 14336, 16)), "hopper_rows");
  EXPECT_EQ(path(layer(129, 14336, 16)), "hopper");
  EXPECT_EQ(path(layer(16, 4096, 65)), "few_rows");
  EXPECT_EQ(path(layer(17, 4096, 65)), "hopper");
  Term odd = layer(64, 4095, 16);  // y's rows need not be at 16 bytes
  EXPECT_EQ(path(odd), "hopper_rows");
  odd.x = matrix(kBF16, 64, 4096, 1);
  EXPECT_EQ(path(odd), "ampere");
  Term outer = layer(64, 4096, 16, true);
  outer.outer_products.emplace_back();
  EXPECT_EQ(path(outer), "hopper_rows");  // which leaves them to a term of their own
}

// Hopper's tiles mask the pair, or its h is made of a masked x.
TEST(CudaPaths, DropoutOnHopper) {
  const Dropout dropout{0.1f};
  for (const auto& [m, rank, path] : {std::tuple{4096, 16, "hopper"},
                                      {4096, 17, "hopper"},
                                      {4096, 256, "hopper"},
                                      {128, 17, "hopper"}}) {
    Term forward = delta(kBF16, kF32, m, 4096, 4096, rank);
    forward.w = matrix(kBF16, 4096, 4096).transposed();
    forward.pair.input_dropout = &dropout;
    EXPECT_STREQ(path_name(forward, kH200), path);
    Term backward = delta(kBF16, kF32, m, 4096, 4096, rank);
    backward.w = matrix(kBF16, 4096, 4096);
    backward.pair.output_dropout = &dropout;
    EXPECT_STREQ(path_name(backward, kH200), path);
    backward.x = matrix(kBF16, 63, 4096), backward.y = matrix(kBF16, 63, 4096);
    EXPECT_STREQ(path_name(backward, kH200), "hopper_rows+ampere");
  }
}

// Whatever the shape, workspace stays small beside the operands.
TEST(CudaPaths, GeneralWorkspaceIsBounded) {
  for (const std::int64_t m : {1, 100, 8192}) {
    for (const std::int64_t k : {0, 64, 4096, 65536}) {
      for (const std::int64_t n : {1, 1000, 8192}) {
        Term term = delta(kF32, kF32, m, k, n, 256);
        term.w = matrix(kF32, k, n);
        EXPECT_LE(general_bytes(term, kH200), std::size_t{32} << 20) << m << k << n;
      }
    }
  }
}

}  // namespace
}  // namespace graft::cuda
