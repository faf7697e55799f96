// RMS norm is a norm whose mean is 0: backend/cuda/norm.h.

#include "backend/cuda/norm.h"
#include "backend/cuda/row_plan.h"
#include "backend/table.h"
#include "graft/rms_norm.h"

namespace graft::cuda {
namespace {

NormBackward norm_of(const RmsNormBackward& p) {
  return {.op = "rms_norm_backward",
          .centered = false,
          .dy = p.dy,
          .s = p.s,
          .weight = p.weight,
          .eps = p.eps,
          .mean = {},
          .rstd = p.rstd,
          .dsum = p.dsum,
          .ds = p.ds,
          .dweight = p.dweight,
          .dbias = {}};
}

}  // namespace

Support supports(const RmsNormForward& p) {
  return all_of({floats_on_cuda("x", p.x), floats_on_cuda("weight", p.weight)});
}

Support supports(const RmsNormBackward& p) {
  return all_of({floats_on_cuda("dy", p.dy), floats_on_cuda("weight", p.weight)});
}

std::size_t scratch_bytes(const RmsNormForward&, int) { return 0; }
std::size_t scratch_bytes(const RmsNormBackward& p, int) { return scratch_bytes(norm_of(p)); }

void rms_norm_forward(Context& context, const RmsNormForward& p) {
  norm_forward(context, {.op = "rms_norm",
                         .centered = false,
                         .x = p.x,
                         .residual = p.residual,
                         .weight = p.weight,
                         .bias = {},
                         .eps = p.eps,
                         .y = p.y,
                         .sum = p.sum,
                         .mean = {},
                         .rstd = p.rstd});
}

void rms_norm_backward(Context& context, const RmsNormBackward& p) {
  norm_backward(context, norm_of(p));
}

}  // namespace graft::cuda
