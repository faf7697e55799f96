#include "rope/cpu.h"

#include "backend/cpu/rows.h"
#include "backend/cpu/scratch_layout.h"
#include "backend/cpu/threads.h"
#include "rope/angles.h"

namespace graft::cpu {

void rope(Context& context, const Rope& params) {
  const ConstTensorView& x = params.x;
  const TensorView& y = params.y;
  const std::int64_t tokens = x.dim(1), heads = x.dim(2), d = x.dim(3);
  if (x.size() == 0) return;
  const RowKernels& rows = row_kernels();
  const Rotary& rotary = params.rotary;
  const auto angles = rope_angles(rotary.theta, d / 2, rotary.position, tokens);
  ScratchLayout layout;
  const int workers = context.threads();
  const auto row = layout.reserve<float>(workers * d);
  layout.allocate(context);

  parallel_for(context, x.dim(0) * tokens, workers, [&](std::int64_t task, int worker) {
    float* const turned = layout.at<float>(row) + worker * d;
    const std::int64_t b = task / tokens, t = task % tokens, position = rotary.position + t;
    for (std::int64_t h = 0; h < heads; ++h) {
      const auto at = [&](const ConstTensorView& view) {
        return (b * view.stride(0) + t * view.stride(1) + h * view.stride(2)) *
               static_cast<std::int64_t>(size_of(view.dtype()));
      };
      rows.load(x.data_as<std::byte>() + at(x), x.dtype(), d, turned);
      rows.turn(turned, d / 2, angles->cos_at(position), angles->sin_at(position),
                params.inverse ? -1.0f : 1.0f, rotary.interleaved);
      rows.store(turned, 1.0f, d, y.mutable_data_as<std::byte>() + at(y), y.dtype());
    }
  });
}

}  // namespace graft::cpu
