// Views of memory that lies in other ways, a weight packed for less, and what happens when a call
// cannot run.
#include <cstdio>
#include <vector>

#include "graft/error.h"
#include "graft/lora.h"

int main() {
  constexpr std::int64_t rows = 3, in = 64, out = 32, rank = 4;
  constexpr auto f32 = graft::DType::kFloat32;

  // PEFT keeps lora_A.weight (rank, in) and lora_B.weight (out, rank). Graft wants (in, rank) and
  // (rank, out): the transposed views, without a copy.
  std::vector<float> lora_a(rank * in, 1.0f / 16), lora_b(out * rank, 1.0f / 8);
  const graft::ConstTensorView a(lora_a.data(), f32, {rank, in});
  const graft::ConstTensorView b(lora_b.data(), f32, {out, rank});
  const graft::Adapter adapter{a.transposed(), b.transposed(), 2.0f};

  // Every second row of a matrix that is twice as tall. Strides count elements.
  std::vector<float> tall(2 * rows * in, 0.5f);
  const std::int64_t shape[] = {rows, in}, strides[] = {2 * in, 1};
  const graft::ConstTensorView x(tall.data(), f32, shape, strides);

  // Packed as bfloat16, for forward only: a quarter of the memory of the default. The float32
  // weights are not needed any more.
  std::vector<float> w(out * in, 1.0f / 32);
  const auto packed = graft::Weight::packed({w.data(), f32, {out, in}}, graft::DType::kBFloat16,
                                            graft::Packing::kForward);
  w.clear();

  graft::Context context;
  std::vector<float> y(rows * out);
  graft::LoraLinearForward call{
      .x = x, .weight = packed, .adapter = adapter, .y = {y.data(), f32, {rows, out}}};
  if (const graft::Support support = graft::supports(call); !support) {
    std::printf("not here: %s\n", support.reason.c_str());
    return 1;
  }
  graft::lora_linear_forward(context, call);
  std::printf("y %g\n", y[0]);  // 64·0.5/32 + 2·4·(64·0.5/16)/8 = 1 + 2

  call.adapter.b = b;  // forgot to transpose
  try {
    graft::lora_linear_forward(context, call);
  } catch (const graft::Error& error) {
    std::printf("%s\n", error.what());
  }

  std::vector<float> dx(rows * in);
  const graft::LoraLinearBackward backward{.dy = {y.data(), f32, {rows, out}},
                                           .weight = packed,
                                           .adapter = adapter,
                                           .dx = {dx.data(), f32, {rows, in}}};
  try {
    graft::lora_linear_backward(context, backward);
  } catch (const graft::Error& error) {
    std::printf("%s\n", error.what());
  }
}
