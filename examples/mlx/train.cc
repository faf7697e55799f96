// Trains the adapter of a layer until the layer does what another one does, and merges it.
#include <mlx/mlx.h>

#include <cmath>
#include <cstdio>
#include <vector>

#include "graft/mlx/fusion.h"
#include "graft/mlx/lora_layer.h"

namespace mx = mlx::core;

int main() {
  const auto w = mx::random::normal({64, 96}, mx::float32, 0.0f, 0.1f, mx::random::key(1));
  const auto change = mx::matmul(mx::random::normal({64, 2}, mx::random::key(2)),
                                 mx::random::normal({2, 96}, mx::random::key(3)));
  const auto wanted = w + 0.1f * change;  // a change of rank 2, which an adapter can learn

  graft::mlx::LoRALayer layer(
      w, std::nullopt,
      {.rank = 4, .alpha = 8, .dropout = 0.1f, .key = mx::random::key(4), .name = "layer"});

  // A pure function of its arrays: the step's dropout is one of them, so that it could be compiled.
  const auto loss = [&](const std::vector<mx::array>& in) {
    const graft::mlx::DropoutState dropout{layer.dropout().p, in[4], in[5]};
    return mx::mean(mx::square(layer.forward(in[2], in[0], in[1], dropout) - in[3]));
  };
  const auto value_and_grad = mx::value_and_grad(loss, std::vector<int>{0, 1});

  const auto error_on_new_data = [&] {
    layer.eval();  // no dropout
    const auto x = mx::random::normal({256, 96}, mx::random::key(5));
    const auto y = layer.forward(x);
    layer.train();
    return mx::mean(mx::square(y - mx::matmul(x, mx::transpose(wanted)))).item<float>();
  };

  const float before = error_on_new_data();
  for (int step = 0; step < 300; ++step) {
    const auto x = mx::random::normal({64, 96}, mx::random::key(100 + step));
    const auto y = mx::matmul(x, mx::transpose(wanted));
    const graft::mlx::DropoutState& dropout = layer.dropout();
    auto [value, gradients] =
        value_and_grad({layer.a(), layer.b(), x, y, dropout.seed, dropout.offset});
    auto a = layer.a() - 1.0f * gradients[0];
    auto b = layer.b() - 1.0f * gradients[1];
    // The next step's random numbers start where this one's end.
    auto offset = dropout.offset + mx::array(graft::mlx::dropout_counters(x), mx::uint64);
    mx::eval(a, b, offset);
    layer.set_a(a);
    layer.set_b(b);
    layer.set_dropout_state(dropout.seed, offset);
  }
  const float after = error_on_new_data();
  std::printf("error fell to a tenth: %s\n", after < 0.1f * before ? "yes" : "no");

  layer.merge();  // W + scaling·(A·B)ᵀ: from here on one product, no adapter
  const float merged = error_on_new_data();
  layer.unmerge();  // the very weight it was made with
  std::printf("merged it does the same: %s\n",
              std::abs(merged - after) < 1e-3f * before ? "yes" : "no");

  for (const auto& record : graft::mlx::fusion_report()) {
    std::printf("%s of %s, %s: %s\n", record.op.c_str(), record.module.c_str(),
                graft::mlx::name_of(record.pass), record.fused ? "fused" : record.reason.c_str());
  }
}
