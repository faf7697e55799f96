#include "graft/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "graft/error.h"
#include "rope/reference.h"
#include "support/compare.h"
#include "support/isas.h"
#include "support/places.h"
#include "support/tensor.h"

namespace graft {
namespace {

using test::Layout;
using test::Tensor;

struct Shape {
  std::int64_t batch, tokens, heads, d;
};

// Error of one turn: three roundings of values no longer than the pair, and that of the result.
double bound(DType dtype) {
  return 5 * (4 * test::epsilon(DType::kFloat32) + test::epsilon(dtype));
}

TEST(RopeEverywhere, MatchesTheReferenceOnHostileShapes) {
  const std::vector<Shape> shapes = {{0, 2, 2, 8},   {2, 0, 2, 8},   {1, 1, 1, 2},  {2, 3, 2, 6},
                                     {1, 5, 3, 64},  {2, 17, 1, 34}, {1, 3, 2, 66}, {1, 300, 1, 32},
                                     {3, 2, 5, 128}, {1, 2, 1, 1040}};
  test::on_each_place([&](const test::Place& place) {
    for (const Shape& s : shapes) {
      for (const DType dtype : place.dtypes()) {
        for (const int flags : {0, 1, 2, 3}) {
          for (const std::int64_t position : {0LL, 1000LL, 50000LL, (1LL << 45) + 3}) {
            SCOPED_TRACE(std::to_string(s.tokens) + " tokens, d " + std::to_string(s.d) +
                         ", position " + std::to_string(position));
            const Layout layout{.offset = flags, .gap = 3, .order = {0, 2, 1, 3}};
            Tensor x(dtype, {s.batch, s.tokens, s.heads, s.d}, layout), y = x;
            x.fill_random(1);
            const Rotary rotary{true, 10000.0f, (flags & 1) != 0, position,
                                (flags & 2) != 0 ? 3.0f : 1.0f};
            const bool inverse = (flags & 2) != 0;
            Tensor truth = y.as(DType::kFloat32);
            reference::rope({x, rotary, inverse, truth});
            place.run(rope, {x, rotary, inverse, y});
            EXPECT_TRUE(test::close(y.values(), truth.values(), bound(dtype)));
            EXPECT_TRUE(y.guarded());
            place.run(rope, {x, rotary, inverse, x});  // in place
            EXPECT_EQ(x.values(), y.values());
          }
        }
      }
    }
  });
}

TEST(RopeEverywhere, InverseUndoesIt) {
  test::on_each_place([](const test::Place& place) {
    Tensor x(DType::kFloat32, {1, 9, 2, 16}), y = x;
    x.fill_random(3);
    place.run(rope, {x, {true, 500.0f, false, 3}, false, y});
    EXPECT_GT(test::max_error(y.values(), x.values()), 0.5);
    place.run(rope, {y, {true, 500.0f, false, 3}, true, y});
    EXPECT_TRUE(test::close(y.values(), x.values(), 2 * bound(DType::kFloat32)));
  });
}

TEST(RopeEverywhere, TurnsTheFirstPairByOneRadianAPosition) {
  test::on_each_place([](const test::Place& place) {
    Tensor x(DType::kFloat32, {1, 3, 1, 4}), y = x;
    x.fill(0);
    for (std::int64_t t = 0; t < 3; ++t) x.set(4 * t, 1);
    place.run(rope, {x, {true, 100.0f, false, 0}, false, y});
    const std::vector<double> halves = {1,           0, 0,           0, std::cos(1), 0,
                                        std::sin(1), 0, std::cos(2), 0, std::sin(2), 0};
    EXPECT_TRUE(test::close(y.values(), halves, 1e-7));
    place.run(rope, {x, {true, 100.0f, true, 0}, false, y});
    const std::vector<double> interleaved = {
        1, 0, 0, 0, std::cos(1), std::sin(1), 0, 0, std::cos(2), std::sin(2), 0, 0};
    EXPECT_TRUE(test::close(y.values(), interleaved, 1e-7));
  });
}

TEST(RopeEverywhere, EveryThetaHasAnglesOfItsOwn) {
  test::on_each_place([](const test::Place& place) {
    Tensor x(DType::kFloat32, {1, 7, 2, 16}), y = x, truth = x;
    x.fill_random(5);
    for (const float theta : {10000.0f, 500000.0f, 10000.0f, 77.0f}) {
      const Rotary rotary{true, theta, false, 5};
      reference::rope({x, rotary, false, truth});
      place.run(rope, {x, rotary, false, y});
      EXPECT_TRUE(test::close(y.values(), truth.values(), bound(DType::kFloat32))) << theta;
    }
  });
}

TEST(Rope, ScalesPositionsDown) {
  // Every fourth position of the scaled turn is a whole one of the plain turn, at any length of the
  // table of angles.
  constexpr std::int64_t kTokens = 33, kHeadSize = 8;
  Tensor x(DType::kFloat32, {1, kTokens, 1, kHeadSize}), scaled = x, plain = x;
  for (std::int64_t i = 0; i < kTokens * kHeadSize; ++i) x.set(i, 1.0 + i % kHeadSize);
  for (const std::int64_t position : {0, 400, 40000}) {
    Context context;
    rope(context, {x, {true, 100.0f, false, position, 4.0f}, false, scaled});
    rope(context, {x, {true, 100.0f, false, position / 4, 1.0f}, false, plain});
    for (std::int64_t t = 0; t < kTokens; t += 4) {
      for (std::int64_t i = 0; i < kHeadSize; ++i) {
        EXPECT_EQ(scaled.values()[static_cast<std::size_t>(t * kHeadSize + i)],
                  plain.values()[static_cast<std::size_t>(t / 4 * kHeadSize + i)]);
      }
    }
  }
}

TEST(Rope, RefusesWhatItCannotTake) {
  Context context;
  const Tensor odd(DType::kFloat32, {1, 1, 1, 3}), even(DType::kFloat32, {1, 1, 1, 4});
  EXPECT_THROW(rope(context, {odd, {}, false, odd}), Error);
  EXPECT_THROW(rope(context, {even, {true, 0.0f, false, 0}, false, even}), Error);
  EXPECT_THROW(rope(context, {even, {true, 1.0f, false, -1}, false, even}), Error);
  for (const float factor : {0.0f, -1.0f, std::nanf("")}) {
    EXPECT_THROW(rope(context, {even, {true, 1.0f, false, 0, factor}, false, even}), Error);
  }
  EXPECT_THROW(rope(context, {even, {}, false, odd}), Error);
}

}  // namespace
}  // namespace graft
