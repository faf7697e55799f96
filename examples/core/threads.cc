// Several threads that share one packed weight, each with its own context.
#include <cstdio>
#include <thread>
#include <vector>

#include "graft/linear.h"

int main() {
  constexpr std::int64_t rows = 16, in = 256, out = 128;
  constexpr auto f32 = graft::DType::kFloat32;
  graft::set_num_threads(2);  // of the pool that all calls share

  const std::vector<float> w(out * in, 1.0f / 64), x(rows * in, 0.5f);
  const auto packed = graft::Weight::packed({w.data(), f32, {out, in}});

  std::vector<std::vector<float>> results(4, std::vector<float>(rows * out));
  std::vector<std::thread> threads;
  for (std::vector<float>& y : results) {
    threads.emplace_back([&] {
      graft::Context context;  // one context serves one call at a time
      graft::linear_forward(
          context,
          {.x = {x.data(), f32, {rows, in}}, .weight = packed, .y = {y.data(), f32, {rows, out}}});
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::vector<float>& y : results) std::printf("%g ", y.back());  // 256·0.5/64
  std::printf("on %d threads\n", graft::num_threads());
}
