// Layers that read one x: lora_linear over a list.

#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "graft/error.h"
#include "graft/lora.h"
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

constexpr DType kF32 = DType::kFloat32, kF16 = DType::kFloat16, kBF16 = DType::kBFloat16;

struct Types {
  DType activations, weight, adapter;
};

// One of the layers, as a test asks for it.
struct Shape {
  std::int64_t n = 0;
  std::int64_t rank = 0;  // 0: no adapter
  float p = 0;
  bool bias = false;
  bool packed = true;
};

struct Layer {
  Shape shape;
  Tensor w, bias, a, b, dy;  // in
  Tensor y, h, da, db;       // out
  Dropout dropout;
  float scaling;
  Weight weight;

  Layer(const Shape& s, std::int64_t m, std::int64_t k, Types t, std::uint32_t seed,
        const Layout& in, const Layout& out)
      : shape(s),
        w(t.weight, {s.n, k}, in),
        bias(t.activations, {s.n}),
        a(t.adapter, {k, s.rank}, in),
        b(t.adapter, {s.rank, s.n}, in),
        dy(t.activations, {m, s.n}, in),
        y(t.activations, {m, s.n}, out),
        h(kF32, {m, s.rank}),
        da(kF32, {k, s.rank}, in),
        db(kF32, {s.rank, s.n}, in),
        dropout{s.p, seed, 1000 * seed},
        scaling(0.5f + static_cast<float>(seed) / 4) {
    w.fill_random(seed + 1), bias.fill_random(seed + 2), dy.fill_random(seed + 3);
    a.fill_random(seed + 4), b.fill_random(seed + 5);
    for (Tensor* t_out : {&y, &h, &da, &db}) t_out->fill(-7);
    const bool packs = s.packed && t.weight != kF16;
    weight = packs ? Weight::packed(w, t.weight) : Weight(ConstTensorView(w));
  }

  Adapter adapter() const { return shape.rank > 0 ? Adapter{a, b, scaling} : Adapter{}; }
};

struct Siblings {
  Types types;
  std::int64_t m, k;
  Tensor x, dx;
  std::vector<Layer> layers;

  Siblings(std::int64_t rows, std::int64_t features, const std::vector<Shape>& shapes, Types t,
           const Layout& in = {}, const Layout& out = {})
      : types(t),
        m(rows),
        k(features),
        x(t.activations, {m, k}, in),
        dx(t.activations, {m, k}, out) {
    x.fill_random(1), dx.fill(-7);
    layers.reserve(shapes.size());
    for (const Shape& shape : shapes) {
      const auto seed = static_cast<std::uint32_t>(10 * layers.size() + 1);
      layers.emplace_back(shape, m, k, t, seed, in, out);
    }
  }

  std::vector<LoraLinearForward> forward(bool plain_weights = false) const {
    std::vector<LoraLinearForward> list;
    for (const Layer& l : layers) {
      const bool pair = l.shape.rank > 0;
      list.push_back({x, plain_weights ? Weight(ConstTensorView(l.w)) : l.weight,
                      l.shape.bias ? ConstTensorView(l.bias) : ConstTensorView(), l.adapter(),
                      l.dropout, l.y, pair ? l.h.view() : TensorView()});
    }
    return list;
  }

  std::vector<LoraLinearBackward> backward(bool plain_weights = false) const {
    std::vector<LoraLinearBackward> list;
    for (const Layer& l : layers) {
      LoraLinearBackward p;
      p.dy = l.dy;
      p.x = x;
      p.weight = plain_weights ? Weight(ConstTensorView(l.w)) : l.weight;
      p.dx = dx;
      if (l.shape.rank > 0) {
        p.adapter = l.adapter(), p.dropout = l.dropout;
        p.h = l.h, p.da = l.da, p.db = l.db;
      }
      list.push_back(p);
    }
    return list;
  }

  DType multiply_type() const {
    for (const DType type : {kBF16, kF16}) {
      if (types.weight == type || types.activations == type) return type;
    }
    return kF32;
  }

  std::vector<const Tensor*> outputs() const {
    std::vector<const Tensor*> all{&dx};
    for (const Layer& l : layers) {
      all.push_back(&l.y);
      if (l.shape.rank > 0) all.insert(all.end(), {&l.h, &l.da, &l.db});
    }
    return all;
  }
};

void run(const test::Place& place, const Siblings& s) {
  place.run<LoraLinearForward>(lora_linear_forward, s.forward());
  place.run<LoraLinearBackward>(lora_linear_backward, s.backward());
}

void run(const Siblings& s) { run(test::Place(), s); }

// The mask of a layer's dropout, scale and all: what the reference makes of ones times I.
Plain mask_of(const Layer& layer, std::int64_t m, std::int64_t k) {
  Tensor ones(kF32, {m, k}), identity(kF32, {k, k}), mask(kF32, {m, k}), none(kF32, {m, k});
  ones.fill(1), identity.fill(0);
  for (std::int64_t i = 0; i < k; ++i) identity.set(i * k + i, 1);
  reference::lora_delta_forward(
      {ones, {identity, identity, 1.0f}, layer.dropout, false, none, mask});
  return Plain::of(mask, kF32);
}

Plain masked(Plain matrix, const Plain& mask, DType type) {
  for (std::int64_t i = 0; i < matrix.rows(); ++i) {
    for (std::int64_t j = 0; j < matrix.cols(); ++j) matrix.at(i, j) *= mask.at(i, j);
  }
  return matrix.scaled(1.0, type);
}

// The same as chains of plain operations, layer after layer, every result rounded; in the order of
// Siblings::outputs().
std::vector<std::vector<double>> composed(const Siblings& s) {
  const DType t = s.multiply_type();
  std::vector<std::vector<double>> all(1);
  const Plain x = Plain::of(s.x, t);
  Plain dx(s.m, s.k);
  for (const Layer& l : s.layers) {
    const Plain w = Plain::of(l.w, t), dy = Plain::of(l.dy, t);
    Plain y = x.times(w.transposed(), t);
    dx = dx.plus(dy.times(w, t), t);
    std::vector<std::vector<double>> gradients;
    if (l.shape.rank > 0) {
      const Plain a = Plain::of(l.a, t), b = Plain::of(l.b, t), mask = mask_of(l, s.m, s.k);
      const Plain dropped = masked(x, mask, t), h = dropped.times(a, t);
      const Plain g = dy.times(b.transposed(), t).scaled(l.scaling, t);
      y = y.plus(h.times(b, t).scaled(l.scaling, t), t);
      dx = dx.plus(masked(g.times(a.transposed(), t), mask, t), t);
      gradients = {h.values(), dropped.transposed().times(g, t).values(),
                   h.transposed().times(dy, t).scaled(l.scaling, t).values()};
    }
    for (std::int64_t i = 0; l.shape.bias && i < s.m; ++i) {
      for (std::int64_t j = 0; j < l.shape.n; ++j) y.at(i, j) += l.bias.get(j);
    }
    all.push_back(y.scaled(1.0, t).values());
    all.insert(all.end(), gradients.begin(), gradients.end());
  }
  all.front() = dx.values();
  return all;
}

// What the reference computes in float32 outputs, from the h that the kernels saved.
std::vector<std::vector<double>> truth_of(const Siblings& s) {
  Siblings truth = s;
  truth.dx = Tensor(kF32, {s.m, s.k});
  for (Layer& l : truth.layers) {
    l.y = Tensor(kF32, {s.m, l.shape.n});
    l.da = Tensor(kF32, {s.k, l.shape.rank}), l.db = Tensor(kF32, {l.shape.rank, l.shape.n});
  }
  const auto forward = truth.forward(true);
  const auto backward = truth.backward(true);
  reference::lora_linear_forward(LoraSiblingsForward(forward));
  reference::lora_linear_backward(LoraSiblingsBackward(backward));
  std::vector<std::vector<double>> all;
  for (const Tensor* t : truth.outputs()) all.push_back(t->values());
  return all;
}

void check(const test::Place& place, const Siblings& s) {
  run(place, s);
  const auto plain = composed(s), truth = truth_of(s);
  const auto outputs = s.outputs();
  // Products with A, with B and with W of each layer, and their sum.
  const int steps = 4 * static_cast<int>(s.layers.size());
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    EXPECT_TRUE(as_good_as(outputs[i]->values(), plain[i], truth[i], s.multiply_type(), steps))
        << "output " << i;
    EXPECT_TRUE(outputs[i]->guarded());
  }
}

struct Case {
  std::int64_t m, k;
  std::vector<Shape> layers;
};

const std::vector<Case>& cases() {
  static const std::vector<Case> all = {
      {0, 5, {{7, 2}, {3, 1}}},
      {5, 0, {{7, 2}, {3, 0}}},
      {5, 7, {{0, 2}, {3, 1}, {0, 0}}},
      {1, 1, {{1, 1}}},
      {1, 37, {{45, 3, 0.3f, true}, {1, 0}, {33, 9, 0, true, false}}},
      {13, 17, {{31, 0}, {17, 0, 0, true}}},
      {15, 33, {{64, 16, 0, true}, {32, 8, 0.5f}, {32, 0}}},
      {29, 64, {{65, 16}, {64, 8}, {66, 3}, {1, 1}, {128, 33}}},
      {61, 101, {{97, 7, 0.1f, true}, {97, 7, 0.3f}}},
      {150, 70, {{130, 5, 0, true}, {34, 8, 0, false, false}, {64, 256}}},
      // Several chunks, and rows whose outer products are made late.
      {417, 40, {{101, 20, 0.2f}, {34, 12}, {33, 0}}},
      {620, 25, {{34, 12}, {96, 8}}}};
  return all;
}

void check_cases(Types types) {
  const Layout columns{.offset = 1, .gap = 2, .order = {1, 0}};
  const Layout gaps{.offset = 3, .gap = 5, .order = {}};
  test::on_each_place([&](const test::Place& place) {
    for (const Case& c : cases()) {
      SCOPED_TRACE(std::to_string(c.m) + " x " + std::to_string(c.k) + ", " +
                   std::to_string(c.layers.size()) + " layers");
      check(place, Siblings(c.m, c.k, c.layers, types));
      check(place, Siblings(c.m, c.k, c.layers, types, columns, gaps));
    }
  });
}

TEST(LoraSiblingsEverywhere, Float32) { check_cases({kF32, kF32, kF32}); }
TEST(LoraSiblingsEverywhere, BFloat16) { check_cases({kBF16, kBF16, kBF16}); }
TEST(LoraSiblingsEverywhere, BFloat16WithAFloat32Adapter) { check_cases({kBF16, kBF16, kF32}); }
TEST(LoraSiblingsEverywhere, Float32ActivationsOverABFloat16Weight) {
  check_cases({kF32, kBF16, kF32});
}
TEST(LoraSiblingsEverywhere, Float16WithAFloat32Adapter) {
  if (!test::testing_on_cuda()) GTEST_SKIP() << "no CPU kernel takes float16";
  check_cases({kF16, kF16, kF32});
}

// Of many rows, each with masks of its own.
TEST(LoraSiblingsEverywhere, WideRanksWithDropout) {
  test::on_each_place([](const test::Place& place) {
    const std::vector<Shape> layers = {
        {264, 64, 0.1f, true}, {72, 17, 0.5f}, {136, 130}, {520, 16, 0.1f}};
    check(place, Siblings(261, 136, layers, {kBF16, kBF16, kF32}));
    if (test::testing_on_cuda()) check(place, Siblings(150, 264, layers, {kF16, kF16, kF16}));
  });
}

const std::vector<Shape> kQkv = {{90, 8, 0.2f, true}, {30, 4}, {33, 0, 0, true}};

// Runs `calls`, those of `alone`, one by one.
void expect_bits_of_single_calls(const test::Place& place, const Siblings& together,
                                 const Siblings& alone,
                                 const std::vector<LoraLinearForward>& calls) {
  for (const LoraLinearForward& params : calls) place.run(lora_linear_forward, params);
  for (std::size_t i = 0; i < alone.layers.size(); ++i) {
    EXPECT_EQ(together.layers[i].y.bytes(), alone.layers[i].y.bytes()) << i;
    EXPECT_EQ(together.layers[i].h.bytes(), alone.layers[i].h.bytes()) << i;
  }
}

// Each element of y is the same sum in the same order, however many layers share x.
TEST(LoraSiblingsEverywhere, ForwardHasTheBitsOfSingleCalls) {
  test::on_each_place([](const test::Place& place) {
    for (const std::int64_t m : {1, 30, 300}) {
      const Siblings together(m, 70, {{90, 8, 0.2f, true}, {30, 4}, {33, 16}}, {kF32, kF32, kF32});
      const Siblings alone = together;
      run(place, together);
      expect_bits_of_single_calls(place, together, alone, alone.forward());
    }
  });
}

// The same of rows that a GPU reads straight from memory, a few at once; those of one call go there
// together. More layers than one launch takes.
TEST(LoraSiblingsEverywhere, ForwardOfFewRowsHasTheBitsOfSingleCalls) {
  test::on_each_place([](const test::Place& place) {
    for (const DType type : place.dtypes()) {
      for (const std::int64_t m : {1, 5, 16}) {
        SCOPED_TRACE(std::string(name_of(type)) + ", " + std::to_string(m) + " rows");
        const Siblings together(m, 264,
                                {{40, 2, 0, true}, {90, 8, 0, true}, {33, 64}, {7, 3}, {24, 16}},
                                {type, type, kF32});
        const Siblings alone = together;
        place.run<LoraLinearForward>(lora_linear_forward, together.forward(true));
        expect_bits_of_single_calls(place, together, alone, alone.forward(true));
      }
    }
  });
}

// The outputs are linear in each operand, so the slope over any step is exact but for rounding.
TEST(LoraSiblings, GradientsAreTheSlopesOfTheReference) {
  Siblings s(3, 6, {{5, 2, 0.4f}, {4, 3}, {2, 0}}, {kF32, kF32, kF32});
  const auto forward = s.forward(true);
  const auto backward = s.backward(true);
  reference::lora_linear_forward(LoraSiblingsForward(forward));
  reference::lora_linear_backward(LoraSiblingsBackward(backward));
  const auto loss = [&] {
    reference::lora_linear_forward(LoraSiblingsForward(forward));
    double sum = 0;
    for (const Layer& l : s.layers) sum += test::dot(l.y, l.dy);
    return sum;
  };
  std::vector<std::pair<Tensor*, Tensor*>> pairs{{&s.x, &s.dx}};
  for (Layer& l : s.layers) pairs.insert(pairs.end(), {{&l.a, &l.da}, {&l.b, &l.db}});
  for (auto [input, gradient] : pairs) test::expect_slopes(loss, *input, *gradient, 1, 5e-5);
}

void check_gradients_alone(const test::Place& place) {
  const Siblings all(150, 64, kQkv, {kF32, kF32, kF32});
  run(place, all);
  for (int wanted = 0; wanted < 3; ++wanted) {
    const Siblings one(150, 64, kQkv, {kF32, kF32, kF32});
    place.run<LoraLinearForward>(lora_linear_forward, one.forward());
    auto backward = one.backward();
    for (std::size_t i = 0; i < backward.size(); ++i) {
      if (wanted != 0) backward[i].dx = {};
      if (wanted != 1) backward[i].da = {};
      if (wanted != 2 || i != 1) backward[i].db = {};
    }
    place.run<LoraLinearBackward>(lora_linear_backward, backward);
    EXPECT_EQ(one.dx.values() == all.dx.values(), wanted == 0);
    EXPECT_EQ(one.layers[0].da.values() == all.layers[0].da.values(), wanted == 1);
    EXPECT_EQ(one.layers[1].da.values() == all.layers[1].da.values(), wanted == 1);
    EXPECT_EQ(one.layers[1].db.values() == all.layers[1].db.values(), wanted == 2);
    EXPECT_FALSE(one.layers[0].db.values() == all.layers[0].db.values());
  }
}

TEST(LoraSiblingsEverywhere, EveryGradientAloneIsTheSameAsTogether) {
  test::on_each_place([](const test::Place& place) { check_gradients_alone(place); });
}

TEST(LoraSiblings, SameBitsEveryTime) {
  for (const int threads : {1, 2, 5}) {
    std::vector<Siblings> results;
    for (int round = 0; round < 3; ++round) {
      results.emplace_back(300, 70, kQkv, Types{kF32, kF32, kF32});
      test::with_threads(threads, [&] { run(results.back()); });
      const auto first = results.front().outputs(), last = results.back().outputs();
      for (std::size_t i = 0; i < first.size(); ++i) EXPECT_EQ(first[i]->bytes(), last[i]->bytes());
    }
  }
}

TEST(LoraSiblings, SaysWhatScratchTheyTake) {
  constexpr std::size_t kPage = 4096;  // a context grows by whole pages
  test::on_each_isa([] {
    for (const int threads : {1, 3}) {
      test::with_threads(threads, [] {
        const Siblings s(300, 70, kQkv, {kF32, kF32, kF32});
        const auto forward = s.forward();
        const auto backward = s.backward();
        const auto expect_taken = [](std::size_t said, const auto& call) {
          Context context;
          call(context);
          EXPECT_GT(said, 0u);
          EXPECT_EQ(context.scratch_bytes(), (said + kPage - 1) / kPage * kPage);
        };
        expect_taken(scratch_bytes(LoraSiblingsForward(forward)), [&](Context& context) {
          lora_linear_forward(context, LoraSiblingsForward(forward));
        });
        expect_taken(scratch_bytes(LoraSiblingsBackward(backward)), [&](Context& context) {
          lora_linear_backward(context, LoraSiblingsBackward(backward));
        });
        expect_taken(scratch_bytes(backward.front()),
                     [&](Context& context) { lora_linear_backward(context, backward.front()); });
      });
    }
  });
}

template <class Call>
std::string error_of(const Call& call) {
  Context context;
  return test::error_of([&] { call(context); });
}

TEST(LoraSiblings, RefusesWhatItCannotTake) {
  const Siblings s(2, 3, {{4, 2}, {5, 0}}, {kF32, kF32, kF32});
  const auto forward_error = [&](auto&& change) {
    auto list = s.forward();
    change(list);
    return error_of(
        [&](Context& context) { lora_linear_forward(context, LoraSiblingsForward(list)); });
  };
  const auto backward_error = [&](auto&& change) {
    auto list = s.backward();
    change(list);
    return error_of(
        [&](Context& context) { lora_linear_backward(context, LoraSiblingsBackward(list)); });
  };
  EXPECT_EQ(forward_error([](auto& list) { list.clear(); }),
            "[lora_linear] layers: expected at least one");
  const Tensor other(kF32, {2, 3});
  EXPECT_EQ(forward_error([&](auto& list) { list[1].x = other; }),
            "[lora_linear 1] x: expected the same view in all layers");
  EXPECT_EQ(forward_error([](auto& list) { list[0].adapter.b = list[0].adapter.a; }),
            "[lora_linear 0] b: expected (2, 2), got (3, 2)");
  EXPECT_EQ(forward_error([](auto& list) { list[1].h = list[0].h; }),
            "[lora_linear 1] h: expected with an adapter only");
  EXPECT_EQ(forward_error([](auto& list) { list[1].y = list[0].y; }),
            "[lora_linear 1] y: expected (2, 5), got (2, 4)");
  EXPECT_EQ(backward_error([&](auto& list) { list[1].dx = other; }),
            "[lora_linear_backward 1] dx: expected the same view in all layers");
  EXPECT_EQ(backward_error([](auto& list) { list[1].da = list[0].da; }),
            "[lora_linear_backward 1] da, db: expected with an adapter only");
  EXPECT_EQ(backward_error([](auto& list) { list[1].weight = {}; }),
            "[lora_linear_backward 1] weight: expected a packed or a plain weight, got none");

  auto mixed = s.forward();
  const Tensor half(kBF16, {5, 3});
  mixed[1].weight = ConstTensorView(half);
  EXPECT_EQ(supports(LoraSiblingsForward(mixed)).reason,
            "weight: layers that share x multiply in one type, not in float32 and in bfloat16");
  EXPECT_TRUE(supports(LoraSiblingsForward(s.forward())).yes);
  EXPECT_EQ(s.layers[0].y.get(0), -7);
  EXPECT_EQ(s.dx.get(0), -7);
}

}  // namespace
}  // namespace graft
