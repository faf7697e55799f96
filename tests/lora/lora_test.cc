#include "graft/lora.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "backend/philox.h"
#include "graft/error.h"
#include "lora/reference.h"
#include "support/compare.h"
#include "support/errors.h"
#include "support/isas.h"
#include "support/places.h"
#include "support/plain.h"
#include "support/slopes.h"
#include "support/tensor.h"

namespace graft {
namespace {

using test::as_good_as;
using test::Layout;
using test::Plain;
using test::Tensor;

struct Types {
  DType activations, weight, adapter;
};

constexpr DType kF32 = DType::kFloat32, kF16 = DType::kFloat16, kBF16 = DType::kBFloat16;

struct Case {
  Types types;
  std::int64_t m, k, n, rank;
  Tensor x, w, bias, a, b, dy;  // in
  Tensor y, h, dx, da, db;      // out
  Dropout dropout;
  float scaling = 1.75f;

  Case(std::array<int, 4> shape, Types t, float p = 0.0f, const Layout& in = {},
       const Layout& out = {})
      : types(t),
        m(shape[0]),
        k(shape[1]),
        n(shape[2]),
        rank(shape[3]),
        x(t.activations, {m, k}, in),
        w(t.weight, {n, k}, in),
        bias(t.activations, {n}),
        a(t.adapter, {k, rank}, in),
        b(t.adapter, {rank, n}, in),
        dy(t.activations, {m, n}, in),
        y(t.activations, {m, n}, out),
        h(kF32, {m, rank}),
        dx(t.activations, {m, k}, out),
        da(kF32, {k, rank}, in),
        db(kF32, {rank, n}, in),
        dropout{p, 99, 1234567} {
    x.fill_random(1), w.fill_random(2), bias.fill_random(3), dy.fill_random(6);
    a.fill_random(4), b.fill_random(5);
    for (Tensor* t_out : {&y, &h, &dx, &da, &db}) t_out->fill(-7);
  }

  Adapter adapter() const { return {a, b, scaling}; }
  LoraLinearForward linear(const Weight& weight) const {
    return {x, weight, bias, adapter(), dropout, y, h};
  }
  LoraLinearBackward linear_gradients(const Weight& weight) const {
    return {dy, x, h, weight, adapter(), dropout, dx, da, db};
  }
  LoraDeltaForward delta(bool accumulate = false) const {
    return {x, adapter(), dropout, accumulate, y, h};
  }
  LoraDeltaBackward delta_gradients() const { return {dy, x, h, adapter(), dropout, dx, da, db}; }
  DType multiply_type() const {
    for (const DType type : {kBF16, kF16}) {
      if (types.weight == type || types.activations == type) return type;
    }
    return kF32;
  }
  void expect_guarded() const {
    for (const Tensor* t : {&x, &w, &a, &b, &dy, &y, &h, &dx, &da, &db}) {
      EXPECT_TRUE(t->guarded());
    }
  }
};

Plain dropped(const Case& c, Plain matrix, DType type) {
  const double threshold = std::round(65536 * static_cast<double>(c.dropout.p));
  for (std::int64_t i = 0; i < matrix.rows(); ++i) {
    for (std::int64_t j = 0; j < matrix.cols(); ++j) {
      const auto element = static_cast<std::uint64_t>(i * matrix.cols() + j);
      matrix.at(i, j) *= dropout_keeps(element, c.dropout) ? 65536 / (65536 - threshold) : 0.0;
    }
  }
  return matrix.scaled(1.0, type);
}

// The same results as chains of plain operations, every intermediate rounded to the multiply type.
struct Composed {
  Plain y, h, dx, da, db;

  explicit Composed(const Case& c, bool with_base)
      : y(c.m, c.n), h(c.m, c.rank), dx(c.m, c.k), da(c.k, c.rank), db(c.rank, c.n) {
    const DType t = c.multiply_type();
    const Plain x = Plain::of(c.x, t), a = Plain::of(c.a, t), b = Plain::of(c.b, t);
    const Plain dy = Plain::of(c.dy, t), x_dropped = dropped(c, x, t);
    h = x_dropped.times(a, t);
    const Plain scaled_g = dy.times(b.transposed(), t).scaled(c.scaling, t);
    y = h.times(b, t).scaled(c.scaling, t);
    dx = dropped(c, scaled_g.times(a.transposed(), t), t);
    da = x_dropped.transposed().times(scaled_g, t);
    db = h.transposed().times(dy, t).scaled(c.scaling, t);
    if (!with_base) return;
    const Plain w = Plain::of(c.w, t);
    y = y.plus(x.times(w.transposed(), t), t);
    for (std::int64_t i = 0; i < c.m; ++i) {
      for (std::int64_t j = 0; j < c.n; ++j) y.at(i, j) += c.bias.get(j);
    }
    y = y.scaled(1.0, t);
    dx = dx.plus(dy.times(w, t), t);
  }
};

// The reference's results, in float32. Its h is also what the kernels' backward was given.
struct Truth {
  Tensor y, h, dx, da, db;

  explicit Truth(const Case& c, bool with_base)
      : y(kF32, {c.m, c.n}),
        h(kF32, {c.m, c.rank}),
        dx(kF32, {c.m, c.k}),
        da(kF32, {c.k, c.rank}),
        db(kF32, {c.rank, c.n}) {
    const Weight w = ConstTensorView(c.w);
    if (with_base) {
      reference::lora_linear_forward({c.x, w, c.bias, c.adapter(), c.dropout, y, h});
      reference::lora_linear_backward({c.dy, c.x, h, w, c.adapter(), c.dropout, dx, da, db});
    } else {
      reference::lora_delta_forward({c.x, c.adapter(), c.dropout, false, y, h});
      reference::lora_delta_backward({c.dy, c.x, h, c.adapter(), c.dropout, dx, da, db});
    }
  }
};

// h of operands as they are multiplied, added up in `Sum`. Kernels keep it in float32.
template <class Sum>
std::vector<double> summed_h(const Case& c, DType multiply) {
  const Plain x = dropped(c, Plain::of(c.x, multiply), kF32), a = Plain::of(c.a, multiply);
  std::vector<double> h;
  for (std::int64_t i = 0; i < c.m; ++i) {
    for (std::int64_t j = 0; j < c.rank; ++j) {
      Sum sum = 0;
      for (std::int64_t e = 0; e < c.k; ++e) sum += static_cast<Sum>(x.at(i, e) * a.at(e, j));
      h.push_back(sum);
    }
  }
  return h;
}

void compare(const Case& c, bool with_base) {
  const Truth truth(c, with_base);
  const Composed composed(c, with_base);
  const DType type = c.multiply_type();
  // Products with A, with B and with W, and their sum.
  constexpr int kSteps = 4;
  EXPECT_TRUE(as_good_as(c.y.values(), composed.y.values(), truth.y.values(), type, kSteps)) << "y";
  const DType h_type = with_base ? c.types.weight : c.types.activations;
  EXPECT_TRUE(as_good_as(c.h.values(), summed_h<float>(c, h_type), summed_h<double>(c, h_type),
                         kF32, kSteps))
      << "h";
  EXPECT_TRUE(as_good_as(c.dx.values(), composed.dx.values(), truth.dx.values(), type, kSteps))
      << "dx";
  EXPECT_TRUE(as_good_as(c.da.values(), composed.da.values(), truth.da.values(), type, kSteps))
      << "da";
  EXPECT_TRUE(as_good_as(c.db.values(), composed.db.values(), truth.db.values(), type, kSteps))
      << "db";
  c.expect_guarded();
}

void check_linear(const test::Place& place, const Case& c, const Weight& weight) {
  place.run(lora_linear_forward, c.linear(weight));
  place.run(lora_linear_backward, c.linear_gradients(weight));
  compare(c, true);
}

void check_delta(const test::Place& place, const Case& c) {
  place.run(lora_delta_forward, c.delta());
  place.run(lora_delta_backward, c.delta_gradients());
  compare(c, false);
}

// Packed where that is for the place's kernels.
Weight weight_of(const test::Place& place, const Case& c) {
  return place.is_cuda() ? Weight(ConstTensorView(c.w)) : Weight::packed(c.w, c.types.weight);
}

const std::vector<std::array<int, 4>> kShapes = {
    {0, 5, 7, 2},
    {5, 0, 7, 2},
    {5, 7, 0, 2},
    {1, 1, 1, 1},
    {1, 37, 45, 3},
    {13, 17, 31, 1},
    {14, 16, 32, 8},
    {15, 33, 33, 9},
    {29, 64, 65, 16},
    {61, 101, 97, 7},
    {128, 64, 96, 8},
    {3, 40, 50, 256},
    {4, 12, 9, 255},
    {150, 70, 130, 5},
    {57, 23, 64, 33},
    // Several chunks, and rows whose outer products are made late.
    {417, 40, 101, 20},
    {620, 25, 34, 12}};

void check_shapes(Types types, const std::vector<std::array<int, 4>>& shapes = kShapes) {
  const Layout columns{.offset = 1, .gap = 2, .order = {1, 0}};
  const Layout gaps{.offset = 3, .gap = 5, .order = {}};
  test::on_each_place([&](const test::Place& place) {
    for (const auto& shape : shapes) {
      SCOPED_TRACE(testing::PrintToString(shape));
      for (const float p : {0.0f, 0.3f}) {
        const Case dense(shape, types, p);
        check_linear(place, dense, weight_of(place, dense));
        check_linear(place, Case(shape, types, p, gaps), ConstTensorView(dense.w));
        const Case strided(shape, types, p, columns, gaps);
        check_linear(place, strided, weight_of(place, strided));
        check_delta(place, Case(shape, types, p));
        check_delta(place, Case(shape, types, p, columns, gaps));
      }
    }
  });
}

TEST(LoraEverywhere, Float32) { check_shapes({kF32, kF32, kF32}); }
TEST(LoraEverywhere, BFloat16) { check_shapes({kBF16, kBF16, kBF16}); }
TEST(LoraEverywhere, BFloat16WithAFloat32Adapter) { check_shapes({kBF16, kBF16, kF32}); }
TEST(LoraEverywhere, Float32ActivationsOverABFloat16Weight) { check_shapes({kF32, kBF16, kF32}); }

// What the CPU has no kernels for.
void check_on_gpus(Types types) {
  if (!test::testing_on_cuda()) GTEST_SKIP() << "no CPU kernel takes float16";
  check_shapes(types);
}

TEST(LoraEverywhere, Float16) { check_on_gpus({kF16, kF16, kF16}); }
TEST(LoraEverywhere, Float16WithAFloat32Adapter) { check_on_gpus({kF16, kF16, kF32}); }
TEST(LoraEverywhere, Float32WithABFloat16Adapter) {
  check_shapes({kF32, kF32, kBF16},
               {{13, 17, 31, 1}, {29, 64, 65, 16}, {57, 23, 64, 33}, {417, 40, 101, 20}});
}
TEST(LoraEverywhere, Float16ActivationsOverABFloat16Weight) { check_on_gpus({kF16, kBF16, kF16}); }

// Layers whose rows are whole 16 bytes: a few rows, more, and more than a tile of them on a GPU; K
// in several parts, odd columns, every number of ranks that h has room for.
TEST(LoraEverywhere, FewAndMiddlingRows) {
  const std::vector<std::array<int, 4>> shapes = {{7, 1032, 248, 64},  {24, 200, 131, 13},
                                                  {64, 584, 136, 16},  {20, 8456, 8, 16},
                                                  {100, 392, 264, 33}, {140, 72, 200, 24}};
  for (const DType adapter : {kBF16, kF32}) {
    check_shapes({kBF16, kBF16, adapter}, shapes);
    if (test::testing_on_cuda()) check_shapes({kF16, kF16, adapter == kBF16 ? kF16 : kF32}, shapes);
  }
}

// Ranks whose dA and dB a GPU makes by a launch of their own.
TEST(LoraEverywhere, WideRanksOfManyRows) {
  const std::vector<std::array<int, 4>> shapes = {
      {200, 40, 136, 17}, {261, 72, 24, 48}, {133, 136, 40, 100}, {150, 24, 40, 200}};
  for (const DType adapter : {kBF16, kF32}) {
    check_shapes({kBF16, kBF16, adapter}, shapes);
    if (test::testing_on_cuda()) check_shapes({kF16, kF16, adapter == kBF16 ? kF16 : kF32}, shapes);
  }
}

// Deltas of few features, ranks in fours and aligned rows, which a GPU makes in one launch: every
// number of rows and ranks that a block has, A and B with their ranks together or apart.
TEST(LoraEverywhere, SmallDeltas) {
  const Layout apart{.offset = 0, .gap = 0, .order = {1, 0}},
      odd{.offset = 1, .gap = 3, .order = {}};
  const std::vector<std::array<int, 4>> shapes = {
      {1, 8, 8, 4},      {3, 24, 40, 12},   {17, 520, 600, 28}, {33, 512, 264, 20},
      {140, 64, 72, 16}, {270, 64, 520, 8}, {1061, 48, 32, 32}, {1100, 16, 16, 4},
      {5, 512, 512, 4},  {5, 512, 1024, 8}, {3, 1024, 512, 16}, {2, 512, 512, 32}};
  test::on_each_place([&](const test::Place& place) {
    for (const DType type : place.dtypes()) {
      for (const DType adapter : {kF32, type}) {
        for (const auto& shape : shapes) {
          SCOPED_TRACE(testing::PrintToString(shape) + name_of(type) + name_of(adapter));
          for (const Layout& layout : {Layout(), apart, odd}) {
            Case c(shape, {type, type, adapter});
            c.a = Tensor(adapter, {c.k, c.rank}, layout),
            c.b = Tensor(adapter, {c.rank, c.n}, layout);
            c.a.fill_random(4), c.b.fill_random(5);
            check_delta(place, c);
          }
        }
      }
    }
  });
}

// The same where a block has several rows, or several tiles of rows one after another.
TEST(LoraEverywhere, SmallDeltasOfManyRows) {
  const std::vector<std::array<int, 4>> shapes = {
      {133, 1024, 512, 4}, {134, 512, 1024, 8}, {133, 512, 512, 16}, {135, 512, 512, 32},
      {2130, 520, 8, 4},   {4400, 24, 40, 20},  {4500, 16, 8, 4},    {1100, 264, 328, 28}};
  test::on_each_place([&](const test::Place& place) {
    for (const DType type : place.dtypes()) {
      for (const auto& shape : shapes) {
        SCOPED_TRACE(testing::PrintToString(shape) + name_of(type));
        check_delta(place, Case(shape, {type, type, type}));
      }
    }
  });
}

// A few rows by a W that is longer than what one step of a GPU's kernel takes of it.
TEST(LoraEverywhere, FewRowsInFloat32) {
  test::on_each_place([](const test::Place& place) {
    for (const auto& shape : std::vector<std::array<int, 4>>{
             {1, 1036, 37, 8}, {2, 512, 64, 3}, {9, 772, 33, 12}, {16, 516, 9, 4}}) {
      SCOPED_TRACE(testing::PrintToString(shape));
      const Case c(shape, {kF32, kF32, kF32});
      check_linear(place, c, weight_of(place, c));
    }
  });
}

double largest_first_error(const test::Place& place, int rows, int rank) {
  Case c({rows, 512, 512, rank}, {kF32, kF32, kF32});
  c.scaling = 2.0f;
  c.a.fill_random(4, 0.02), c.b.fill_random(5, 0.02);
  place.run(lora_delta_forward, c.delta());
  Tensor y(kF32, {rows, 512});
  reference::lora_delta_forward({c.x, c.adapter(), c.dropout, false, y, {}});
  return test::max_error(c.y.values(), y.values());
}

void check_first_shapes(const test::Place& place, const std::vector<int>& batches,
                        const std::vector<int>& sequences) {
  EXPECT_LT(largest_first_error(place, 2 * 64, 8), 1e-4);
  for (const int batch : batches) {
    for (const int sequence : sequences) {
      for (const int rank : {4, 8, 16, 32}) {
        EXPECT_LT(largest_first_error(place, batch * sequence, rank), 1e-4)
            << batch << " x " << sequence << ", rank " << rank;
      }
    }
  }
}

// The check that the project began with: y = (x @ A @ B) · 2 on (2, 64, 512), rank 8, below 1e-4;
// and around it batch × sequence × rank.
TEST(LoraEverywhere, DeltaIsBelow1e4OnTheFirstShapes) {
  if (!test::testing_on_cuda()) return check_first_shapes(test::Place(), {1, 4}, {32, 128});
  test::on_each_place([](const test::Place& place) {
    check_first_shapes(place, {1, 4, 16}, {32, 128, 512});
  });
}

TEST(LoraEverywhere, DeltaCanAddToY) {
  test::on_each_place([](const test::Place& place) {
    for (const DType type : place.dtypes()) {
      for (const int n : {45, 48}) {
        Case c({31, 40, n, 8}, {type, type, type});
        const Tensor before = Tensor(type, {31, n}).fill_random(9);
        for (std::int64_t i = 0; i < before.size(); ++i) c.y.set(i, before.get(i));
        place.run(lora_delta_forward, c.delta(true));
        Tensor truth = before.as(kF32);
        reference::lora_delta_forward({c.x, c.adapter(), c.dropout, true, truth, {}});
        const Plain plain = Composed(c, false).y.plus(Plain::of(before, type), type);
        EXPECT_TRUE(as_good_as(c.y.values(), plain.values(), truth.values(), type));
      }
    }
  });
}

// y is linear in each operand, so the slope over any step is exact but for rounding.
TEST(Lora, GradientsAreTheSlopesOfTheReference) {
  for (const float p : {0.0f, 0.4f}) {
    Case c({3, 6, 5, 2}, {kF32, kF32, kF32}, p);
    const Weight w = ConstTensorView(c.w);
    reference::lora_linear_forward(c.linear(w));
    reference::lora_linear_backward(c.linear_gradients(w));
    const auto loss = [&] {
      reference::lora_linear_forward(c.linear(w));
      return test::dot(c.y, c.dy);
    };
    for (auto [input, gradient] : {std::pair{&c.x, &c.dx}, {&c.a, &c.da}, {&c.b, &c.db}}) {
      test::expect_slopes(loss, *input, *gradient, 1, 2e-5);
    }
  }
}

// h of ones times I is the mask itself, and so is dx where every element of s·g·Aᵀ is 1.
TEST(LoraEverywhere, MasksAreThoseOfPhilox) {
  test::on_each_place([](const test::Place& place) {
    for (const DType type : place.dtypes()) {
      for (const auto& [rows, features] : {std::pair{70, 37}, {9, 64}, {131, 201}, {1, 1}}) {
        for (const float p : {0.1f, 0.5f, 0.999f}) {
          Case c({rows, features, 1, features}, {type, type, kF32}, p);
          c.dropout.offset = 0xfffffffffffffff0u;  // and on from 0
          c.x.fill(1), c.a.fill(0);
          for (std::int64_t i = 0; i < features; ++i) c.a.set(i * features + i, 1);
          place.run(lora_delta_forward, c.delta());
          Case gradient({rows, features, 1, 1}, {type, kF32, kF32}, p);
          gradient.dropout = c.dropout, gradient.scaling = 1;
          gradient.dy.fill(1), gradient.a.fill(1), gradient.b.fill(1);
          LoraDeltaBackward backward = gradient.delta_gradients();
          backward.da = {}, backward.db = {};
          place.run(lora_delta_backward, backward);
          for (std::int64_t i = 0; i < c.h.size(); ++i) {
            const bool kept = dropout_keeps(static_cast<std::uint64_t>(i), c.dropout);
            const float scale = kept ? c.dropout.scale() : 0.0f;
            ASSERT_EQ(c.h.get(i), scale) << i << ", p " << p;
            ASSERT_EQ(gradient.dx.get(i), test::rounded(scale, type)) << i << ", p " << p;
          }
        }
      }
    }
  });
}

// Layers of many tiles, whose outer products are partly made beside those, element by element: sums
// of powers of two, with no base product's rounding in the way.
TEST(LoraEverywhere, MasksOfLargeLayersAreThoseOfPhilox) {
  if (!test::testing_on_cuda()) GTEST_SKIP() << "no CPU kernel has tiles so large";
  test::on_each_place([](const test::Place& place) {
    // Rows, features of x and of y, rank and p.
    for (const auto& [rows, in, out, rank, p] : {std::tuple{4095, 3328, 1024, 16, 0.5f},
                                                 {509, 2056, 4104, 16, 0.1f},
                                                 {509, 4104, 64, 16, 0.00002f},
                                                 {509, 4104, 64, 16, 0.999f},
                                                 {4095, 2056, 1024, 32, 0.5f},
                                                 {1025, 4104, 72, 17, 0.1f},
                                                 {385, 520, 2056, 64, 0.1f},
                                                 {701, 1032, 136, 128, 0.9f},
                                                 {259, 2056, 264, 256, 0.00002f}}) {
      SCOPED_TRACE(testing::Message()
                   << rows << " rows of " << in << ", rank " << rank << ", p " << p);
      Case c({rows, in, out, rank}, {kBF16, kBF16, kBF16}, p);
      c.dropout.offset = 0xfffff000u;  // counters go on in their upper half
      c.scaling = 1;
      c.x.fill(1), c.w.fill(0), c.bias.fill(0), c.a.fill(0), c.b.fill(0), c.dy.fill(0);
      // Each feature is in every 16th column of h, each row in one of g, with a weight.
      const auto weight_of = [](std::int64_t i) { return static_cast<float>(1 << i / 16 % 8); };
      for (std::int64_t i = 0; i < in; ++i) {
        for (std::int64_t r = i % 16; r < rank; r += 16) c.a.set(i * rank + r, weight_of(i));
      }
      const std::int64_t ranks = std::min(rank, out);
      for (std::int64_t i = 0; i < ranks; ++i) c.b.set(i * out + i, 1);
      for (std::int64_t i = 0; i < rows; ++i) c.dy.set(i * out + i % ranks, weight_of(i));
      const Weight weight = ConstTensorView(c.w);
      place.run(lora_linear_forward, c.linear(weight));
      place.run(lora_linear_backward, c.linear_gradients(weight));

      const float scale = c.dropout.scale(), rounded = test::rounded(scale, kBF16);
      std::vector<double> h(rows * rank), da(in * rank);
      std::int64_t wrong = 0;
      for (std::int64_t i = 0; i < rows; ++i) {
        for (std::int64_t eight = 0; eight < in / 8; ++eight) {
          const auto words = philox(c.dropout.offset + i * in / 8 + eight, c.dropout.seed);
          for (std::int64_t j = eight * 8; j < eight * 8 + 8; ++j) {
            const bool kept = philox_field(words, j % 8) >= c.dropout.threshold();
            const bool meet = i % ranks % 16 == j % 16;  // in dx
            wrong += c.dx.get(i * in + j) !=
                     (kept && meet ? rounded * weight_of(i) * weight_of(j) : 0.0f);
            if (!kept) continue;
            for (std::int64_t r = j % 16; r < rank; r += 16)
              h[i * rank + r] += weight_of(j) * scale;
            da[j * rank + i % ranks] += weight_of(i) * scale;
          }
        }
      }
      EXPECT_EQ(wrong, 0) << "dx";
      EXPECT_TRUE(test::close(c.h.values(), h, *std::max_element(h.begin(), h.end()) * 1e-6));
      // A path may have rounded s·g with its scale.
      const double most = *std::max_element(da.begin(), da.end());
      EXPECT_TRUE(test::close(c.da.values(), da, p == 0.5f ? 0.0 : most / 256)) << "da";
      c.expect_guarded();
    }
  });
}

// The same of numbers that are not as simple: widths of tiles, ranks, rows beside the last block.
TEST(LoraEverywhere, LargeLayersWithDropout) {
  if (!test::testing_on_cuda()) GTEST_SKIP() << "no CPU kernel has tiles so large";
  constexpr Types kMixed{kBF16, kBF16, kF32}, kHalf{kF16, kF16, kF16};
  using Shape = std::array<int, 4>;
  test::on_each_place([&](const test::Place& place) {
    for (const auto& [shape, types, p] : {std::tuple{Shape{261, 24, 4096, 16}, kMixed, 0.1f},
                                          {Shape{261, 4096, 24, 5}, kMixed, 0.1f},
                                          {Shape{769, 16, 4104, 1}, kHalf, 0.1f},
                                          {Shape{769, 4104, 16, 13}, kHalf, 0.9f},
                                          {Shape{261, 4104, 16, 17}, kMixed, 0.1f},
                                          {Shape{261, 136, 4096, 64}, kHalf, 0.9f},
                                          {Shape{513, 72, 1032, 32}, kMixed, 0.1f},
                                          {Shape{300, 1032, 72, 100}, kMixed, 0.5f},
                                          {Shape{143, 264, 520, 128}, kHalf, 0.1f},
                                          {Shape{257, 520, 264, 200}, kMixed, 0.1f},
                                          {Shape{129, 136, 136, 256}, kHalf, 0.5f}}) {
      SCOPED_TRACE(testing::PrintToString(shape));
      const Case c(shape, types, p);
      check_linear(place, c, ConstTensorView(c.w));
    }
  });
}

TEST(LoraEverywhere, EveryGradientAloneIsTheSameAsTogether) {
  test::on_each_place([](const test::Place& place) {
    const Case all({150, 64, 40, 8}, {kF32, kF32, kF32}, 0.2f);
    const Weight weight = weight_of(place, all);
    place.run(lora_linear_forward, all.linear(weight));
    place.run(lora_linear_backward, all.linear_gradients(weight));
    for (int wanted = 0; wanted < 3; ++wanted) {
      const Case one({150, 64, 40, 8}, {kF32, kF32, kF32}, 0.2f);
      place.run(lora_linear_forward, one.linear(weight));
      LoraLinearBackward params = one.linear_gradients(weight);
      if (wanted != 0) params.dx = {};
      if (wanted != 1) params.da = {}, params.x = {};
      if (wanted != 2) params.db = {}, params.h = {};
      place.run(lora_linear_backward, params);
      EXPECT_EQ(one.dx.values() == all.dx.values(), wanted == 0);
      EXPECT_EQ(one.da.values() == all.da.values(), wanted == 1);
      EXPECT_EQ(one.db.values() == all.db.values(), wanted == 2);
    }
  });
}

// On a GPU blocks run in another order every time.
TEST(LoraEverywhere, SameBitsAHundredTimes) {
  test::on_each_place([](const test::Place& place) {
    for (const DType type : place.dtypes()) {
      const Types types{type, type, kF32};
      const Case first({300, 270, 90, 8}, types, 0.1f);
      for (int round = 0; round < (place.is_cuda() ? 100 : 3); ++round) {
        const Case again = first;
        const Case& c = round == 0 ? first : again;
        const Weight weight = ConstTensorView(c.w);
        place.run(lora_linear_forward, c.linear(weight));
        place.run(lora_linear_backward, c.linear_gradients(weight));
        for (auto t : {&Case::y, &Case::h, &Case::dx, &Case::da, &Case::db}) {
          ASSERT_EQ((c.*t).bytes(), (first.*t).bytes()) << "round " << round;
        }
      }
    }
  });
}

TEST(Lora, SameBitsEveryTime) {
  for (const int threads : {1, 2, 5}) {
    std::vector<Case> results;
    for (int round = 0; round < 3; ++round) {
      results.emplace_back(std::array{300, 70, 90, 8}, Types{kF32, kF32, kF32}, 0.1f);
      const Case& c = results.back();
      test::with_threads(threads, [&] {
        Context context;
        const Weight weight = Weight::packed(c.w);
        lora_linear_forward(context, c.linear(weight));
        lora_linear_backward(context, c.linear_gradients(weight));
      });
      for (auto t : {&Case::y, &Case::h, &Case::dx, &Case::da, &Case::db}) {
        EXPECT_EQ((c.*t).bytes(), (results.front().*t).bytes());
      }
    }
  }
}

std::string error_of(const LoraLinearForward& params) {
  Context context;
  return test::error_of([&] { lora_linear_forward(context, params); });
}

TEST(Lora, RefusesAStateInDeviceMemoryOnTheCpu) {
  const Case c({2, 3, 4, 2}, {kF32, kF32, kF32}, 0.5f);
  const std::uint64_t state[] = {1, 2};
  LoraLinearForward p = c.linear(ConstTensorView(c.w));
  p.dropout.state = state;
  EXPECT_EQ(error_of(p),
            "[lora_linear] dropout: a seed and offset in device memory are for CUDA kernels");
  LoraDeltaBackward gradients = c.delta_gradients();
  gradients.dropout.state = state;
  EXPECT_EQ(supports(gradients).reason,
            "dropout: a seed and offset in device memory are for CUDA kernels");
}

TEST(Lora, RefusesWhatItCannotTake) {
  const Case c({2, 3, 4, 2}, {kF32, kF32, kF32});
  const Weight w = ConstTensorView(c.w);
  LoraLinearForward p = c.linear(w);
  p.adapter.b = c.a;
  EXPECT_EQ(error_of(p), "[lora_linear] b: expected (2, 2), got (3, 2)");
  p = c.linear(w);
  p.adapter.a = c.b;
  EXPECT_EQ(error_of(p), "[lora_linear] b: expected (4, 4), got (2, 4)");
  p = c.linear(w);
  p.dropout.p = 1.0f;
  EXPECT_NE(error_of(p).find("[lora_linear] dropout: expected p in [0, 1)"), std::string::npos);
  p = c.linear(w);
  p.adapter.scaling = std::nanf("");
  EXPECT_EQ(error_of(p), "[lora_linear] scaling: expected a finite number");
  p = c.linear(w);
  p.h = c.y;
  EXPECT_EQ(error_of(p), "[lora_linear] h: expected (2, 2), got (2, 4)");
  const Case wide({2, 300, 300, 257}, {kF32, kF32, kF32});
  EXPECT_EQ(error_of(wide.linear(ConstTensorView(wide.w))),
            "[lora_linear] a: expected a rank of 1 to 256 columns, got (300, 257)");

  const TensorView half(c.a.view().mutable_data(), DType::kFloat16, {3, 2});
  p = c.linear(w);
  p.adapter.a = half;
  EXPECT_EQ(error_of(p), "[lora_linear] a: float16 has no CPU kernel, float32 and bfloat16 do");
  EXPECT_EQ(supports(p).reason, "a: float16 has no CPU kernel, float32 and bfloat16 do");
  EXPECT_EQ(c.y.get(0), -7);

  Context context;
  LoraLinearBackward gradients = c.linear_gradients(w);
  gradients.h = {};
  EXPECT_THROW(lora_linear_backward(context, gradients), Error);
  gradients = c.linear_gradients(w);
  gradients.x = {};
  EXPECT_THROW(lora_linear_backward(context, gradients), Error);
}

}  // namespace
}  // namespace graft
