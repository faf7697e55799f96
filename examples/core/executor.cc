// A host that has threads of its own runs the library's parallel work on them.
#include <cstdio>
#include <thread>
#include <vector>

#include "graft/linear.h"

// Stands for a host's parallel-for; this one starts its threads anew each time.
class HostThreads : public graft::Executor {
 public:
  int threads() const override { return 2; }

  void run(int workers, void (*work)(void* state, int worker), void* state) override {
    std::vector<std::thread> others;
    for (int i = 1; i < workers; ++i) others.emplace_back(work, state, i);
    work(state, 0);
    for (std::thread& other : others) other.join();
    ++calls;
  }

  int calls = 0;
};

int main() {
  constexpr std::int64_t rows = 64, in = 256, out = 128;
  constexpr auto f32 = graft::DType::kFloat32;
  const std::vector<float> w(out * in, 1.0f / 64), x(rows * in, 0.5f);
  std::vector<float> y(rows * out);

  HostThreads host;
  graft::Context context(host);  // Graft's pool is left alone
  graft::linear_forward(context, {.x = {x.data(), f32, {rows, in}},
                                  .weight = graft::ConstTensorView(w.data(), f32, {out, in}),
                                  .y = {y.data(), f32, {rows, out}}});
  std::printf("%g, %s\n", y.back(), host.calls > 0 ? "on the host's threads" : "alone");
}
