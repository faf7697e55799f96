// A linear layer with a LoRA adapter on MLX arrays, and the gradient of its adapter.
#include <mlx/mlx.h>

#include <cstdio>

#include "graft/mlx/fused_lora_op.h"
#include "graft/mlx/fusion.h"
#include "graft/mlx/lora_layer.h"

namespace mx = mlx::core;

int main() {
  auto x = mx::full({2, 64, 512}, 0.5f);      // (batch, tokens, features)
  auto w = mx::full({256, 512}, 1.0f / 128);  // the frozen base

  graft::mlx::LoRALayer layer(w, std::nullopt, {.rank = 8, .alpha = 16});
  layer.set_a(mx::full({512, 8}, 1.0f / 64));  // A starts random and B zero; set here to have a
  layer.set_b(mx::full({8, 256}, 1.0f / 32));  // result that can be checked by hand

  auto loss = [&](const std::vector<mx::array>& adapter) {
    return mx::mean(layer.forward(x, adapter[0], adapter[1]));
  };
  auto [value, gradients] = mx::value_and_grad(loss, {0, 1})({layer.a(), layer.b()});

  // The adapter's contribution alone, 2·(x·A)·B, as an op to make once and apply often.
  graft::mlx::FusedLoRAOp delta(layer.a(), layer.b(), layer.scaling());

  std::printf("loss %g, dA %g, dB %g, delta %g\n", value.item<float>(),
              mx::mean(gradients[0]).item<float>(), mx::mean(gradients[1]).item<float>(),
              mx::mean(delta(x)).item<float>());
  for (const auto& record : graft::mlx::fusion_report()) {
    std::printf("%s %s: %s\n", record.op.c_str(), graft::mlx::name_of(record.pass),
                record.fused ? "fused" : record.reason.c_str());
  }
}
