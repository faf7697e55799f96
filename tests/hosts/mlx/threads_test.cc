#include <thread>

#include "graft/mlx/fusion.h"
#include "graft/mlx/linear_cross_entropy.h"
#include "graft/mlx/lora.h"
#include "graft/mlx/swiglu.h"
#include "kernels_here.h"
#include "truth.h"

namespace graft::mlx {
namespace {

using testing::normal;
using testing::values;

using Arrays = std::vector<mx::array>;

// Evaluated weights that all threads share.
struct Model {
  Weight weight = pack(normal({48, 32}, 1, 0.2f));
  Weight head = pack(normal({61, 48}, 2, 0.2f));
  mx::array a = normal({32, 4}, 3, 0.2f);
  mx::array b = normal({4, 48}, 4, 0.2f);

  Model() { mx::eval(a, b); }

  // Loss and gradients of a step on a batch of its own.
  std::vector<std::vector<double>> step(std::uint32_t seed) const {
    const auto x = normal({7, 32}, seed);
    const auto targets = mx::array({1, 2, 3, 4, -100, 6, 60}, {7});
    const auto loss = [&](const Arrays& in) {
      const DropoutState dropout{0.1f, mx::array(seed, mx::uint64), mx::array(0)};
      const auto y = lora_linear(x, weight, std::nullopt, in[0], in[1], 2.0f, dropout);
      const auto z = swiglu(y, linear(x, weight));
      return mx::sum(linear_cross_entropy(z, head, targets));
    };
    const auto [value, gradients] = mx::value_and_grad(loss, std::vector<int>{0, 1})({a, b});
    return {values(value), values(gradients[0]), values(gradients[1])};
  }
};

TEST(Threads, EachWithItsOwnGraphsOverSharedWeights) {
  constexpr std::uint32_t kThreads = 4;
  constexpr std::uint32_t kSteps = 8;
  const Model model;
  std::vector<std::vector<std::vector<double>>> alone;
  for (std::uint32_t i = 0; i < kThreads * kSteps; ++i) alone.push_back(model.step(100 + i));

  reset_fusion_report();
  std::vector<std::vector<std::vector<double>>> together(kThreads * kSteps);
  std::vector<std::thread> threads;
  for (std::uint32_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      const ModuleScope scope("thread " + std::to_string(t));
      for (std::uint32_t i = 0; i < kSteps; ++i) {
        together[t * kSteps + i] = model.step(100 + t * kSteps + i);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(together, alone);  // bit for bit
  testing::expect_fused();
  for (const auto& record : fusion_report()) {
    EXPECT_EQ(record.runs, kSteps) << record.op << " in " << record.module;
  }
}

// A result that nobody waits for may be dropped while its task is still queued.
TEST(Threads, DroppedBeforeItRan) {
  const Model model;
  for (std::uint32_t i = 0; i < 50; ++i) {
    mx::async_eval(
        lora_linear(normal({64, 32}, i), model.weight, std::nullopt, model.a, model.b, 2.0f));
  }
  mx::synchronize();
  EXPECT_EQ(model.step(100), model.step(100));
}

}  // namespace
}  // namespace graft::mlx
