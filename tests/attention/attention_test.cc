#include "graft/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "attention/plain_attention.h"
#include "attention/reference.h"
#include "graft/error.h"
#include "support/compare.h"
#include "support/errors.h"
#include "support/isas.h"
#include "support/slopes.h"
#include "support/tensor.h"

namespace graft {
namespace {

using test::Layout;
using test::Tensor;

struct Shape {
  std::int64_t batch, queries, keys, heads, kv_heads, d;
};

constexpr const char* kOutputs[] = {"y", "logsumexp", "dq", "dk", "dv"};
// Forward a value passes through turn, product, exp and product; backward through those again.
constexpr int kRoundings[] = {4, 4, 8, 8, 8};

// exp makes an absolute error of a score, a rounding for each unit of its size, a relative one.
int roundings(std::size_t output, const std::vector<double>& logsumexp) {
  double largest = 0;
  for (const double value : logsumexp) largest = std::max(largest, std::abs(value));
  return kRoundings[output] + (output == 1 ? 0 : static_cast<int>(largest));
}

struct Case {
  Tensor q, k, v, y, logsumexp, dy, dq, dk, dv;
  AttentionOptions options;

  Case(DType dtype, const Shape& s, const AttentionOptions& o, const Layout& layout = {})
      : q(dtype, {s.batch, s.queries, s.heads, s.d}, layout),
        k(dtype, {s.batch, s.keys, s.kv_heads, s.d}, layout),
        v(dtype, {s.batch, s.keys, s.kv_heads, s.d}, layout),
        y(dtype, {s.batch, s.queries, s.heads, s.d}, layout),
        logsumexp(DType::kFloat32, {s.batch, s.heads, s.queries}),
        dy(dtype, {s.batch, s.queries, s.heads, s.d}, layout),
        dq(dtype, {s.batch, s.queries, s.heads, s.d}, layout),
        dk(dtype, {s.batch, s.keys, s.kv_heads, s.d}, layout),
        dv(dtype, {s.batch, s.keys, s.kv_heads, s.d}, layout),
        options(o) {
    q.fill_random(1), k.fill_random(2), v.fill_random(3), dy.fill_random(4);
    options.scale = 2 / std::sqrt(static_cast<float>(s.d));
    for (Tensor* output : outputs()) output->fill(-7);
  }

  std::vector<Tensor*> outputs() { return {&y, &logsumexp, &dq, &dk, &dv}; }
  AttentionForward forward() const { return {q, k, v, options, y, logsumexp}; }
  AttentionBackward backward() const { return {dy, q, k, v, y, logsumexp, options, dq, dk, dv}; }
  void run() const {
    Context context;
    attention_forward(context, forward());
    attention_backward(context, backward());
  }
};

// What `compute` makes of the case's values in float32; the gradients from the y that the kernels
// rounded to bfloat16, where they did.
template <class Compute>
std::vector<std::vector<double>> in_float32(const Case& c, const Compute& compute) {
  Case wide = c;
  for (Tensor* t : {&wide.q, &wide.k, &wide.v, &wide.dy}) *t = t->as(DType::kFloat32);
  for (Tensor* t : wide.outputs()) *t = t->as(DType::kFloat32);
  const Tensor y = wide.y;
  AttentionBackward backward = wide.backward();
  if (c.y.view().dtype() == DType::kBFloat16) backward.y = y;
  compute(wide.forward(), backward);
  std::vector<std::vector<double>> results;
  for (const Tensor* t : wide.outputs()) results.push_back(t->values());
  return results;
}

void check_case(DType dtype, const Shape& s, const AttentionOptions& options,
                const Layout& layout) {
  const Case c(dtype, s, options, layout);
  SCOPED_TRACE(std::string(name_of(dtype)) + " q " + c.q.view().shape_string() + " k " +
               c.k.view().shape_string() + (options.causal ? " causal" : "") +
               (options.rotary.enabled ? " rotary" : "") +
               (options.rotary.interleaved ? " interleaved" : ""));
  test::on_each_isa([&] {
    Case here = c;
    here.run();
    const auto plain = in_float32(here, test::plain_attention);
    const auto truth = in_float32(here, [](const auto& forward, const auto& backward) {
      reference::attention_forward(forward);
      reference::attention_backward(backward);
    });
    for (std::size_t i = 0; i < here.outputs().size(); ++i) {
      SCOPED_TRACE(kOutputs[i]);
      EXPECT_TRUE(test::as_good_as_float32(here.outputs()[i]->values(), plain[i], truth[i],
                                           i == 1 ? DType::kFloat32 : dtype,
                                           roundings(i, truth[1])));
      EXPECT_TRUE(here.outputs()[i]->guarded());
    }
  });
}

AttentionOptions with(bool causal, bool rotary, bool interleaved = false) {
  AttentionOptions options;
  options.causal = causal;
  options.rotary = {rotary, 10000.0f, interleaved, 5, interleaved ? 3.0f : 1.0f};
  return options;
}

TEST(Attention, MatchesTheReferenceOnHostileShapes) {
  const std::vector<Shape> shapes = {
      {0, 3, 3, 2, 1, 8},      {2, 0, 0, 2, 1, 8},    {2, 3, 3, 3, 1, 8},    {1, 13, 13, 2, 2, 24},
      {1, 14, 14, 3, 3, 16},   {2, 15, 15, 6, 2, 32}, {1, 33, 33, 2, 1, 72}, {1, 71, 71, 3, 1, 64},
      {1, 129, 129, 1, 1, 40}, {1, 5, 37, 4, 2, 64},  {1, 35, 66, 2, 1, 256}};
  for (const Shape& shape : shapes) {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
      check_case(dtype, shape, with(true, false), {});
      check_case(dtype, shape, with(true, true), {.offset = 1, .gap = 3, .order = {}});
      check_case(dtype, shape, with(false, true, true), {.offset = 3, .gap = 0, .order = {}});
    }
  }
}

// A cache that keeps (B, kv_heads, T, d), read through strides.
TEST(Attention, TakesHeadsBeforeTokens) {
  const Layout layout{.offset = 0, .gap = 1, .order = {0, 2, 1, 3}};
  check_case(DType::kFloat32, {2, 19, 23, 4, 2, 16}, with(true, true), layout);
  check_case(DType::kBFloat16, {2, 1, 23, 4, 2, 16}, with(true, true), layout);
}

TEST(Attention, DecodesOneAndTwoQueriesAgainstCachedKeys) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    for (const std::int64_t queries : {1, 2, 3}) {
      for (const std::int64_t keys : {3, 31, 32, 97}) {
        check_case(dtype, {2, queries, keys, 6, 2, 64}, with(true, true), {});
        check_case(dtype, {1, queries, keys, 2, 1, 24}, with(true, false), {});
      }
    }
  }
}

TEST(Attention, OneKeyGetsAllTheWeight) {
  test::on_each_isa([] {
    const Case c(DType::kFloat32, {1, 1, 1, 1, 1, 8}, with(true, true));
    c.run();
    EXPECT_TRUE(test::close(c.y.values(), c.v.values(), 0));
    EXPECT_TRUE(test::close(c.dv.values(), c.dy.values(), 1e-6));
    // scale·p·(dp − δ)·k, where dp and δ are the same sum of 8 products in different orders.
    const std::vector<double> zeros(8);
    EXPECT_TRUE(test::close(c.dq.values(), zeros, 1e-6));
    EXPECT_TRUE(test::close(c.dk.values(), zeros, 1e-6));
  });
}

TEST(Attention, WithoutKeysYieldsZero) {
  test::on_each_isa([] {
    for (const std::int64_t queries : {1, 20}) {
      const Case c(DType::kFloat32, {1, queries, 0, 2, 1, 8}, with(false, false));
      c.run();
      EXPECT_EQ(test::max_error(c.y.values(), std::vector<double>(c.y.values().size())), 0);
      EXPECT_EQ(test::max_error(c.dq.values(), std::vector<double>(c.dq.values().size())), 0);
      EXPECT_EQ(c.logsumexp.get(0), -std::numeric_limits<double>::infinity());
    }
  });
}

TEST(Attention, LargeScoresNeitherOverflowNorVanish) {
  test::on_each_isa([] {
    Case c(DType::kFloat32, {1, 3, 40, 1, 1, 8}, with(false, false));
    c.q.fill(100), c.k.fill(0), c.options.scale = 1;
    for (std::int64_t e = 0; e < 8; ++e) c.k.set(7 * 8 + e, 10);  // key 7 scores 8000, others 0
    c.run();
    std::vector<double> expected;
    for (std::int64_t i = 0; i < 24; ++i) expected.push_back(c.v.get(7 * 8 + i % 8));
    EXPECT_EQ(test::max_error(c.y.values(), expected), 0);
    EXPECT_EQ(c.logsumexp.get(2), 8000);
  });
}

TEST(Attention, NanReachesWhatItShouldAndNothingElse) {
  test::on_each_isa([] {
    for (const std::int64_t queries : {20, 2}) {
      Case c(DType::kFloat32, {1, queries, queries, 1, 1, 8}, with(true, false));
      c.k.set((queries - 1) * 8, std::numeric_limits<double>::quiet_NaN());
      c.run();
      EXPECT_FALSE(std::isnan(c.y.get((queries - 2) * 8)));  // does not see the last key
      EXPECT_TRUE(std::isnan(c.y.get((queries - 1) * 8)));
      EXPECT_TRUE(std::isnan(c.dq.get((queries - 1) * 8)));
    }
  });
}

TEST(Attention, GradientsAreTheSlopesOfTheReference) {
  for (const bool interleaved : {false, true}) {
    Case c(DType::kFloat32, {1, 3, 4, 2, 1, 8}, with(true, true, interleaved));
    reference::attention_forward(c.forward());
    reference::attention_backward(c.backward());
    const auto loss = [&c] {
      reference::attention_forward(c.forward());
      return test::dot(c.y, c.dy);
    };
    const std::vector<std::pair<Tensor*, Tensor*>> pairs = {
        {&c.q, &c.dq}, {&c.k, &c.dk}, {&c.v, &c.dv}};
    for (const auto& [input, gradient] : pairs) {
      test::expect_slopes(loss, *input, *gradient, 0.01, 1e-3);
    }
  }
}

TEST(Attention, SameBitsForAnyNumberOfThreads) {
  std::vector<Case> results;
  for (const int threads : {1, 2, 3}) {
    for (const std::int64_t queries : {150, 1}) {
      results.emplace_back(DType::kFloat32, Shape{2, queries, 150, 6, 2, 64}, with(true, true));
      test::with_threads(threads, [&] { results.back().run(); });
      Case& first = results[queries == 150 ? 0 : 1];
      for (std::size_t i = 0; i < first.outputs().size(); ++i) {
        EXPECT_EQ(results.back().outputs()[i]->bytes(), first.outputs()[i]->bytes()) << i;
      }
    }
  }
}

TEST(Attention, AnyGradientMayBeAbsent) {
  Case all(DType::kFloat32, {1, 17, 17, 2, 1, 16}, with(true, true));
  all.run();
  for (const int wanted : {0, 1, 2}) {
    Case c(DType::kFloat32, {1, 17, 17, 2, 1, 16}, with(true, true));
    Context context;
    attention_forward(context, c.forward());
    AttentionBackward params = c.backward();
    if (wanted != 0) params.dq = {};
    if (wanted != 1) params.dk = {};
    if (wanted != 2) params.dv = {};
    attention_backward(context, params);
    for (std::size_t i = 2; i < 5; ++i) {
      const bool written = static_cast<int>(i) - 2 == wanted;
      EXPECT_EQ(c.outputs()[i]->values() == all.outputs()[i]->values(), written);
      EXPECT_EQ(c.outputs()[i]->get(0) == -7, !written);
    }
  }
}

std::string error_of(const AttentionForward& params) {
  Context context;
  return test::error_of([&] { attention_forward(context, params); });
}

TEST(Attention, RefusesWhatItCannotTake) {
  const Case c(DType::kFloat32, {1, 4, 4, 6, 4, 16}, with(true, false));
  EXPECT_EQ(error_of(c.forward()),
            "[attention] k: expected a number of heads that divides q's 6, got 4");
  const Case longer(DType::kFloat32, {1, 4, 3, 2, 1, 16}, with(true, false));
  EXPECT_EQ(error_of(longer.forward()),
            "[attention] k: expected at least as many keys as queries, got 3 for 4");
  const Case odd(DType::kFloat32, {1, 4, 4, 2, 1, 12}, with(true, false));
  EXPECT_FALSE(supports(odd.forward()));
  EXPECT_EQ(error_of(odd.forward()), "[attention] " + supports(odd.forward()).reason);
  Case good(DType::kFloat32, {1, 4, 4, 2, 1, 16}, with(true, true));
  EXPECT_EQ(error_of(good.forward()), "no error");
  AttentionForward params = good.forward();
  params.logsumexp = good.y;
  EXPECT_EQ(error_of(params), "[attention] logsumexp: expected (1, 2, 4), got (1, 4, 2, 16)");
  good.options.rotary.position = -1;
  EXPECT_EQ(error_of(good.forward()), "[attention] rotary.position: expected at least 0, got -1");
}

}  // namespace
}  // namespace graft
