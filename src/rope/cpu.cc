#include "backend/cpu/rotary_angles.h"
#include "backend/cpu/rows.h"
#include "backend/cpu/scratch.h"
#include "backend/cpu/threads.h"
#include "checks.h"
#include "graft/rope.h"

namespace graft::cpu {

namespace {

// A row for each worker.
float* worker_rows(Scratch& scratch, const Rope& params, int workers) {
  return scratch.take<float>(workers * params.x.dim(3));
}

}  // namespace

Support supports(const Rope& params) { return float_on_cpu("x", params.x); }

std::size_t scratch_bytes(const Rope& params, int threads) {
  return bytes_of([&](Scratch& scratch) { return worker_rows(scratch, params, threads); });
}

void rope(Context& context, const Rope& params) {
  const ConstTensorView& x = params.x;
  const TensorView& y = params.y;
  const std::int64_t tokens = x.dim(1), heads = x.dim(2), d = x.dim(3);
  if (x.size() == 0) return;
  const RowKernels& rows = row_kernels();
  const Rotary& rotary = params.rotary;
  const auto angles = context.rotary_tables().angles(rotary, d / 2, tokens);
  const int workers = context.threads();
  float* const row =
      lay_out(context, [&](Scratch& scratch) { return worker_rows(scratch, params, workers); });

  parallel_for(context, x.dim(0) * tokens, workers, [&](std::int64_t task, int worker) {
    float* const turned = row + worker * d;
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
