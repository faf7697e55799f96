#include <thread>

#include "graft/mlx/fusion.h"
#include "graft/mlx/lora.h"
#include "graft/mlx/lora_siblings.h"
#include "graft/mlx/rms_norm.h"
#include "kernels_here.h"
#include "truth.h"

// What MLX's own graphs, streams and threads do to calls on its CUDA device, where only what an
// encoder is told keeps launches in order.
namespace graft::mlx {
namespace {

using testing::max_error;
using testing::normal;
using testing::values;

using Arrays = std::vector<mx::array>;

class CudaStreams : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!testing::on_cuda()) GTEST_SKIP() << "these are about MLX's CUDA device";
  }
};

// One layer after the other; rows are brought back to length 1, so that any number may follow.
struct Layer {
  mx::array w, a, b;

  Layer(int features, int rank, mx::Dtype dtype)
      : w(normal({features, features}, 1, 1 / std::sqrt(static_cast<float>(features)), dtype)),
        a(normal({features, rank}, 2, 1 / std::sqrt(static_cast<float>(features)), dtype)),
        b(normal({rank, features}, 3, 1 / std::sqrt(static_cast<float>(rank)), dtype)) {
    mx::eval(w, a, b);
  }

  mx::array fused(const mx::array& x, mx::Stream s) const {
    const auto y = lora_linear(x, w, std::nullopt, a, b, 0.5f, {}, s);
    return rms_norm(y, mx::ones({y.shape(-1)}, mx::float32, s), 1e-5f, s);
  }
  mx::array composed(const mx::array& x, mx::Stream s) const {
    const auto half = mx::array(0.5f, x.dtype());
    const auto y = mx::add(mx::matmul(x, mx::transpose(w, s), s),
                           mx::matmul(mx::multiply(mx::matmul(x, a, s), half, s), b, s), s);
    return mx::fast::rms_norm(y, mx::ones({y.shape(-1)}, x.dtype(), s), 1e-5f, s);
  }
};

// float32: small tiles; bfloat16 of these sizes: Hopper's, launched cooperatively.
struct Size {
  int rows, features, rank;
  mx::Dtype dtype;
  double tolerance;  // of a value of about 1, after one layer
};
const std::vector<Size>& sizes() {
  static const std::vector<Size> all{{33, 96, 8, mx::float32, 1e-5},
                                     {4, 512, 16, mx::bfloat16, 0.2},
                                     {256, 1024, 16, mx::bfloat16, 0.2}};
  return all;
}

TEST_F(CudaStreams, LongChainsEvaluatedAhead) {
  const mx::Stream s = mx::default_stream(mx::Device::gpu);
  const Layer layer(96, 8, mx::float32);
  const auto x = normal({33, 96}, 9);
  mx::array y = x, z = x;
  for (int i = 0; i < 150; ++i) {
    y = layer.fused(y, s), z = layer.composed(z, s);
    if (i % 40 == 0) mx::async_eval({y});
    // Rounding grows along the chain, which is not what this is about.
    if (i % 10 == 9) z = y;
  }
  EXPECT_LE(max_error(y, values(z)), 1e-4);
}

// Independent calls in one graph of MLX: none may get the workspace of another that still runs.
TEST_F(CudaStreams, ManyIndependentCallsInOneGraph) {
  const mx::Stream s = mx::default_stream(mx::Device::gpu);
  for (const Size& size : sizes()) {
    const Layer layer(size.features, size.rank, size.dtype);
    for (std::uint32_t turn = 0; turn < 4; ++turn) {
      Arrays fused, composed;
      for (std::uint32_t i = 0; i < 30; ++i) {
        const auto x = normal({size.rows, size.features}, 100 * turn + i, 1.0f, size.dtype);
        fused.push_back(layer.fused(x, s)), composed.push_back(layer.composed(x, s));
      }
      mx::eval(fused);
      for (std::size_t i = 0; i < fused.size(); ++i) {
        EXPECT_LE(max_error(fused[i], values(composed[i])), size.tolerance) << size.features;
      }
    }
  }
}

// MLX updates a graph that it has for another of the same form: kernels of all kinds in turn, in
// one place of it.
TEST_F(CudaStreams, KernelsOfDifferentKindsInTurn) {
  const mx::Stream s = mx::default_stream(mx::Device::gpu);
  for (int turn = 0; turn < 12; ++turn) {
    const Size& size = sizes()[static_cast<std::size_t>(turn) % sizes().size()];
    const Layer layer(size.features, size.rank, size.dtype);
    const auto x = normal({size.rows, size.features}, 7, 1.0f, size.dtype);
    mx::eval(x);
    mx::synchronize();
    const auto y = layer.fused(x, s);
    mx::eval(y);
    EXPECT_LE(max_error(y, values(layer.composed(x, s))), size.tolerance) << "turn " << turn;
  }
}

TEST_F(CudaStreams, AlternatingStreams) {
  const mx::Stream first = mx::default_stream(mx::Device::gpu);
  const mx::Stream second = mx::new_stream(mx::Device::gpu);
  for (const Size& size : sizes()) {
    const Layer layer(size.features, size.rank, size.dtype);
    mx::array y = normal({size.rows, size.features}, 9, 1.0f, size.dtype);
    for (int i = 0; i < 20; ++i) {
      const auto x = y;
      y = layer.fused(x, i % 2 == 0 ? first : second);
      if (i < 19) continue;
      EXPECT_LE(max_error(y, values(layer.composed(x, first))), size.tolerance);
    }
  }
}

TEST_F(CudaStreams, ThreadsOnStreamsOfTheirOwn) {
  for (const Size& size : sizes()) {
    const Layer layer(size.features, size.rank, size.dtype);
    const auto x = normal({size.rows, size.features}, 9, 1.0f, size.dtype);
    const auto alone = [&](mx::Stream s) {
      mx::array y = x;
      for (int i = 0; i < 6; ++i) y = layer.fused(y, s);
      return values(y);
    };
    const auto expected = alone(mx::default_stream(mx::Device::gpu));
    std::vector<int> same(4, 0);
    std::vector<std::thread> threads;
    for (int& count : same) {
      threads.emplace_back([&] {
        const mx::Stream s = mx::new_stream(mx::Device::gpu);
        for (int i = 0; i < 20; ++i) count += alone(s) == expected;
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(same, std::vector<int>(4, 20)) << size.features;  // bit for bit
  }
}

// Reading an array on the host moves its memory, and a weight keeps an array.
TEST_F(CudaStreams, WeightsThatTheHostHasRead) {
  const auto w = normal({48, 32}, 1, 0.2f);
  const std::vector<LoraSibling> layers{{.weight = pack(mx::multiply(w, mx::array(2.0f)))}};
  const auto x = normal({7, 32}, 2);
  const auto before = values(lora_siblings(x, layers)[0]);
  EXPECT_EQ(values(unpack(layers[0].weight)), values(mx::multiply(w, mx::array(2.0f))));
  EXPECT_EQ(values(lora_siblings(x, layers)[0]), before);
}

// Seed and offset are read on the device, where they may have been computed by what came just
// before.
TEST_F(CudaStreams, CountersComputedOnTheDevice) {
  const auto x = normal({9, 32}, 1), w = normal({16, 32}, 2);
  const auto a = normal({32, 4}, 3), b = normal({4, 16}, 4);
  const auto y = [&](const mx::array& seed, const mx::array& offset) {
    return lora_linear(x, w, std::nullopt, a, b, 1.0f, DropoutState{0.4f, seed, offset});
  };
  const auto expected =
      values(y(mx::array(std::uint64_t{7}, mx::uint64), mx::array(std::uint64_t{11}, mx::uint64)));
  mx::array offset(std::uint64_t{0}, mx::uint64);
  for (int i = 0; i < 11; ++i) offset = mx::add(offset, mx::array(std::uint64_t{1}, mx::uint64));
  const auto seed = mx::sum(mx::array({3, 4}, mx::uint64));
  EXPECT_EQ(values(y(seed, offset)), expected);
}

}  // namespace
}  // namespace graft::mlx
