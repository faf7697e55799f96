// Layer norm is a norm with a mean and a bias: backend/cuda/norm.h.

#include "backend/cuda/norm.h"
#include "backend/cuda/row_plan.h"
#include "backend/table.h"
#include "graft/layer_norm.h"

namespace graft::cuda {
namespace {

NormBackward norm_of(const LayerNormBackward& p) {
  return {.op = "layer_norm_backward",
          .centered = true,
          .dy = p.dy,
          .s = p.x,
          .weight = p.weight,
          .eps = p.eps,
          .mean = p.mean,
          .rstd = p.rstd,
          .dsum = {},
          .ds = p.dx,
          .dweight = p.dweight,
          .dbias = p.dbias};
}

}  // namespace

Support supports(const LayerNormForward& p) {
  return all_of({floats_on_cuda("x", p.x), floats_on_cuda("weight", p.weight),
                 floats_on_cuda("bias", p.bias)});
}

Support supports(const LayerNormBackward& p) {
  return all_of({floats_on_cuda("dy", p.dy), floats_on_cuda("weight", p.weight)});
}

std::size_t scratch_bytes(const LayerNormForward&, int) { return 0; }
std::size_t scratch_bytes(const LayerNormBackward& p, int) { return scratch_bytes(norm_of(p)); }

void layer_norm_forward(Context& context, const LayerNormForward& p) {
  norm_forward(context, {.op = "layer_norm",
                         .centered = true,
                         .x = p.x,
                         .residual = {},
                         .weight = p.weight,
                         .bias = p.bias,
                         .eps = p.eps,
                         .y = p.y,
                         .sum = {},
                         .mean = p.mean,
                         .rstd = p.rstd});
}

void layer_norm_backward(Context& context, const LayerNormBackward& p) {
  norm_backward(context, norm_of(p));
}

}  // namespace graft::cuda
