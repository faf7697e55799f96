// Several threads that compute with one layer. What is const may be called from any of them.
#include <mlx/mlx.h>

#include <cstdio>
#include <thread>
#include <vector>

#include "graft/mlx/fusion.h"
#include "graft/mlx/lora_layer.h"

namespace mx = mlx::core;

int main() {
  auto a = mx::full({512, 8}, 1.0f / 64), b = mx::full({8, 256}, 1.0f / 32);
  mx::eval(a, b);  // arrays that threads share are evaluated first
  const graft::mlx::LoRALayer layer(mx::full({256, 512}, 1.0f / 128));

  std::vector<float> results(4);
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < results.size(); ++i) {
    threads.emplace_back([&, i] {
      const graft::mlx::ModuleScope scope("thread " + std::to_string(i));  // for the report
      const auto x = mx::full({16, 512}, 0.5f * static_cast<float>(i));
      results[i] = mx::mean(layer.forward(x, a, b)).item<float>();
    });
  }
  for (std::thread& thread : threads) thread.join();

  for (const float result : results) std::printf("mean %g\n", result);  // 2·i and 2·i
  for (const auto& record : graft::mlx::fusion_report()) {
    std::printf("%s: %s %s, %llu run\n", record.module.c_str(), record.op.c_str(),
                record.fused ? "fused" : record.reason.c_str(),
                static_cast<unsigned long long>(record.runs));
  }
}
