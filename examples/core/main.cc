// A linear layer with a LoRA adapter, forward and backward, on memory that the caller owns.
#include <cstdio>
#include <vector>

#include "graft/lora.h"

int main() {
  constexpr std::int64_t rows = 4, in = 512, out = 256, rank = 8;
  constexpr auto f32 = graft::DType::kFloat32;
  std::vector<float> x(rows * in, 0.5f), w(out * in, 1.0f / 128), y(rows * out), dx(rows * in);
  std::vector<float> a(in * rank, 1.0f / 64), b(rank * out, 1.0f / 32), da(in * rank),
      db(rank * out);
  std::vector<float> h(rows * rank), dy(rows * out, 1.0f);

  graft::Context context;  // scratch memory, kept between calls
  const auto packed = graft::Weight::packed({w.data(), f32, {out, in}});
  graft::Adapter adapter{{a.data(), f32, {in, rank}}, {b.data(), f32, {rank, out}}, 2.0f};

  // y = x·Wᵀ + 2·(x·A)·B, in one pass.
  graft::lora_linear_forward(context, {.x = {x.data(), f32, {rows, in}},
                                       .weight = packed,
                                       .adapter = adapter,
                                       .y = {y.data(), f32, {rows, out}},
                                       .h = {h.data(), f32, {rows, rank}}});
  graft::lora_linear_backward(context, {.dy = {dy.data(), f32, {rows, out}},
                                        .x = {x.data(), f32, {rows, in}},
                                        .h = {h.data(), f32, {rows, rank}},
                                        .weight = packed,
                                        .adapter = adapter,
                                        .dx = {dx.data(), f32, {rows, in}},
                                        .da = {da.data(), f32, {in, rank}},
                                        .db = {db.data(), f32, {rank, out}}});

  // By hand: y = 512·0.5/128 + 2·8·(512·0.5/64)/32 = 2 + 2, the base's share and the adapter's.
  std::printf("on %s: y %g, dx %g, dA %g, dB %g\n", graft::cpu_isa(), y[0], dx[0], da[0], db[0]);
}
