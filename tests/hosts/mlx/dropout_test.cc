#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

#include "graft/mlx/fusion.h"
#include "graft/mlx/lora.h"
#include "truth.h"

namespace graft::mlx {
namespace {

using testing::Matrix;
using testing::matrix;
using testing::max_error;
using testing::normal;
using testing::values;

using Arrays = std::vector<mx::array>;
using Words = std::array<std::uint32_t, 4>;

// Philox 4x32-7 as its paper writes it (Salmon et al., SC11), apart from the one under test.
Words philox(std::uint64_t counter, std::uint64_t key) {
  Words c{static_cast<std::uint32_t>(counter), static_cast<std::uint32_t>(counter >> 32), 0, 0};
  auto k0 = static_cast<std::uint32_t>(key);
  auto k1 = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 7; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53} * c[0];
    const std::uint64_t p1 = std::uint64_t{0xCD9E8D57} * c[2];
    c = {static_cast<std::uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<std::uint32_t>(p1),
         static_cast<std::uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<std::uint32_t>(p0)};
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return c;
}

// Known answers of Random123's kat_vectors, for counter and key all zeros.
TEST(Dropout, PhiloxHereIsPhilox) {
  EXPECT_EQ(philox(0, 0), (Words{0x5f6fb709, 0x0d893f64, 0x4f121f81, 0x4f730a48}));
}

Matrix dropped(const mx::array& x, double p, std::uint64_t seed, std::uint64_t offset) {
  Matrix m = matrix(x);
  const double threshold = std::min(std::round(65536 * p), 65535.0);
  for (std::size_t e = 0; e < m.data.size(); ++e) {
    const std::uint32_t word = philox(offset + e / 8, seed)[e % 8 / 2];
    const std::uint32_t field = e % 2 == 0 ? word & 0xFFFF : word >> 16;
    m.data[e] = field >= threshold ? m.data[e] * 65536 / (65536 - threshold) : 0.0;
  }
  return m;
}

constexpr float kP = 0.3f;
constexpr std::uint64_t kSeed = 0x123456789ABCDEF0;
constexpr std::uint64_t kOffset = 0xFFFFFFFF;  // its counters cross 2³²

struct Operands {
  mx::array x = normal({2, 7, 13}, 1);
  mx::array a = normal({13, 3}, 2);
  mx::array b = normal({3, 5}, 3);
  mx::array w = normal({5, 13}, 4);
  mx::array dy = normal({2, 7, 5}, 5);
};

mx::array u64(std::uint64_t v) { return mx::array(v, mx::uint64); }

class DropoutEitherWay : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    set_fused_enabled(GetParam());
    // Without fusing MLX's elementwise ops, which takes it seconds of compiling for nothing here.
    mx::set_compile_mode(mx::CompileMode::no_fuse);
  }
  void TearDown() override {
    set_fused_enabled(true);
    mx::set_compile_mode(mx::CompileMode::enabled);
  }
};

// Value and gradients, fused and composed, against the mask made here: backward uses forward's. A
// chance that is nearest to none of 65536 drops nothing, and one nearest to all leaves one of them.
TEST_P(DropoutEitherWay, MaskOfTheContract) {
  const Operands in;
  const auto weight = pack(in.w);
  for (const float p : {kP, 1e-6f, 0.99999994f}) {
    SCOPED_TRACE(p);
    const auto f = [&](const Arrays& v) {
      return Arrays{
          lora_linear(v[0], weight, std::nullopt, v[1], v[2], 2.0f, {p, u64(kSeed), u64(kOffset)})};
    };
    const auto [y, gradients] = mx::vjp(f, {in.x, in.a, in.b}, {in.dy});

    const double s = 2.0;
    const Matrix D = dropped(in.x, p, kSeed, kOffset);
    const Matrix A = matrix(in.a), B = matrix(in.b), W = matrix(in.w), G = matrix(in.dy);
    EXPECT_LE(max_error(y[0], matrix(in.x) * transpose(W) + s * ((D * A) * B)), 1e-4);
    Matrix da = s * (transpose(D) * (G * transpose(B)));
    EXPECT_LE(max_error(gradients[1], da), 2e-4);
    EXPECT_LE(max_error(gradients[2], s * (transpose(D * A) * G)), 2e-4);
    Matrix adapter = s * ((G * transpose(B)) * transpose(A));
    const Matrix mask = dropped(mx::ones(in.x.shape()), p, kSeed, kOffset);
    for (std::size_t e = 0; e < mask.data.size(); ++e) adapter.data[e] *= mask.data[e];
    EXPECT_LE(max_error(gradients[0], G * W + adapter), 2e-4);
  }
}

// What is kept is scaled in float32 and then rounded: not by a factor that is rounded itself.
TEST_P(DropoutEitherWay, ScalesBFloat16Exactly) {
  const auto x = mx::astype(normal({64, 32}, 1), mx::bfloat16);
  const auto identity = mx::astype(mx::eye(32), mx::bfloat16);
  const auto y = lora_linear(x, mx::zeros({32, 32}, mx::bfloat16), std::nullopt, identity, identity,
                             1.0f, {0.1f, u64(kSeed), u64(kOffset)});
  const Matrix D = dropped(x, 0.1, kSeed, kOffset);
  double sum = 0, truth = 0;
  const auto seen = values(y);
  for (std::size_t e = 0; e < seen.size(); ++e) {
    EXPECT_NEAR(seen[e], D.data[e], std::abs(D.data[e]) / 128);
    sum += std::abs(seen[e]);
    truth += std::abs(D.data[e]);
  }
  // 1,843 roundings of at most 1/256 each, either way; a factor rounded first is 0.2 % off.
  EXPECT_NEAR(sum / truth, 1, 2e-4);
}

// One compiled function, two offsets: two masks. A frozen mask would repeat the first.
TEST_P(DropoutEitherWay, CompiledStepsDrawDifferentMasks) {
  const Operands in;
  const auto weight = pack(in.w);
  const auto step = mx::compile(std::function<Arrays(const Arrays&)>([&](const Arrays& v) {
    const auto loss = [&](const Arrays& t) {
      return mx::sum(
          mx::square(lora_linear(v[0], weight, std::nullopt, t[0], t[1], 2.0f, {kP, v[3], v[4]})));
    };
    auto [value, gradients] = mx::value_and_grad(loss, std::vector<int>{0, 1})({v[1], v[2]});
    return Arrays{value, gradients[0], gradients[1], mx::add(v[4], u64(dropout_counters(v[0])))};
  }));
  auto offset = u64(0);
  std::vector<double> losses;
  for (int i = 0; i < 2; ++i) {
    const std::uint64_t at = i * dropout_counters(in.x);
    const auto out = step({in.x, in.a, in.b, u64(kSeed), offset});
    const Matrix D = dropped(in.x, kP, kSeed, at);
    const Matrix Y =
        matrix(in.x) * transpose(matrix(in.w)) + 2.0 * ((D * matrix(in.a)) * matrix(in.b));
    double truth = 0;
    for (const double y : Y.data) truth += y * y;
    losses.push_back(values(out[0])[0]);
    EXPECT_NEAR(losses.back(), truth, 1e-4 * truth);
    offset = out[3];
  }
  EXPECT_NE(losses[0], losses[1]);
}

// vmap maps over calls: each gets the mask that it would have had alone.
TEST_P(DropoutEitherWay, VmapKeepsEachCallsMask) {
  const Operands in;
  const auto weight = pack(in.w);
  const auto call = [&](const mx::array& x) {
    return lora_linear(x, weight, std::nullopt, in.a, in.b, 2.0f, {kP, u64(kSeed), u64(9)});
  };
  const auto mapped = mx::vmap(call)(in.x);
  for (int i = 0; i < 2; ++i) {
    const auto x = mx::take(in.x, i, 0);
    const Matrix alone = matrix(x) * transpose(matrix(in.w)) +
                         2.0 * ((dropped(x, kP, kSeed, 9) * matrix(in.a)) * matrix(in.b));
    EXPECT_LE(max_error(mx::take(mapped, i, 0), alone), 1e-4);
  }
}

INSTANTIATE_TEST_SUITE_P(Ways, DropoutEitherWay, ::testing::Values(true, false),
                         [](const auto& way) { return way.param ? "Fused" : "Composed"; });

TEST(Dropout, KeepsItsShareAndItsMean) {
  const auto x = mx::ones({64, 512});
  const auto identity = mx::eye(512);
  const auto y =
      lora_linear(x, mx::zeros({512, 512}), std::nullopt, mx::slice(identity, {0, 0}, {512, 256}),
                  mx::slice(identity, {0, 0}, {256, 512}), 1.0f, {0.25f, u64(7), u64(0)});
  const auto seen = values(mx::slice(y, {0, 0}, {64, 256}));
  double kept = 0;
  for (const double v : seen) {
    EXPECT_TRUE(v == 0.0 || std::abs(v - 1 / 0.75) < 1e-6) << v;
    kept += v > 0;
  }
  // 16,384 draws: the share's standard deviation is 0.0034.
  EXPECT_NEAR(kept / static_cast<double>(seen.size()), 0.75, 4 * 0.0034);
}

}  // namespace
}  // namespace graft::mlx
