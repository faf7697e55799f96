#include "softmax/metal.h"

#include "backend/metal/limits.h"
#include "backend/metal/plan.h"
#include "backend/metal/rows.h"
#include "backend/metal/shaders.h"
#include "backend/table.h"

namespace graft::metal {
namespace {

Plan plan_of(const char* kernel, const ConstTensorView& first, std::vector<Operand> reads,
             float scale) {
  Plan plan;
  if (first.size() == 0) return plan;
  Step step = row_step(kernel, {shaders::kRows, shaders::kSoftmax}, first.dim(0), first.dim(1),
                       {first.dtype()}, scale);
  step.reads = std::move(reads);
  step.writes = {output(0)};
  plan.steps = {step};
  return plan;
}

}  // namespace

Support supports(const SoftmaxForward& p) {
  return all_of({is_floating(p.x.dtype()), rows_fit(p.x.dim(0), p.x.dim(1)), is_dense("x", p.x),
                 is_dense("y", p.y)});
}

Support supports(const SoftmaxBackward& p) {
  return all_of({is_floating(p.dy.dtype()), rows_fit(p.dy.dim(0), p.dy.dim(1)),
                 is_dense("dy", p.dy), is_dense("y", p.y), is_dense("dx", p.dx)});
}

Plan softmax_forward(const SoftmaxForward& p) {
  return plan_of("softmax", p.x, {input(0)}, p.scale);
}

Plan softmax_backward(const SoftmaxBackward& p) {
  return plan_of("softmax_backward", p.dy, {input(0), input(1)}, p.scale);
}

}  // namespace graft::metal
