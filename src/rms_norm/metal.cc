#include "rms_norm/metal.h"

#include "backend/metal/limits.h"
#include "backend/metal/plan.h"
#include "backend/metal/rows.h"
#include "backend/metal/shaders.h"
#include "backend/table.h"

namespace graft::metal {
namespace {

std::vector<const char*> text() { return {shaders::kRows, shaders::kRmsNorm}; }

}  // namespace

Support supports(const RmsNormForward& p) {
  return all_of({is_floating(p.x.dtype()), vector_fits("weight", p.weight),
                 rows_fit(p.x.dim(0), p.x.dim(1)), is_dense("x", p.x),
                 is_dense("residual", p.residual), is_dense("y", p.y), is_dense("sum", p.sum)});
}

Support supports(const RmsNormBackward& p) {
  if (!p.rstd.present()) return Support::no("rstd: Metal kernels read what forward wrote");
  return all_of({is_floating(p.dy.dtype()), vector_fits("weight", p.weight),
                 rows_fit(p.dy.dim(0), p.dy.dim(1)), is_dense("dy", p.dy), is_dense("s", p.s),
                 is_dense("dsum", p.dsum), is_dense("ds", p.ds)});
}

Plan rms_norm_forward(const RmsNormForward& p) {
  Plan plan;
  if (p.x.size() == 0) return plan;
  Numbering inputs(Operand::Of::kInputs), outputs(Operand::Of::kOutputs);
  const Operand x = inputs.next(p.x), residual = inputs.next(p.residual);
  const Operand weight = inputs.next(p.weight);
  const Operand y = outputs.next(p.y), sum = outputs.next(p.sum), rstd = outputs.next(p.rstd);
  Step step = row_step("rms_norm", text(), p.x.dim(0), p.x.dim(1),
                       {p.x.dtype(), p.weight.dtype(), p.residual.present()}, p.eps);
  step.reads = {x, is_absent(residual) ? x : residual, weight};
  step.writes = {y, given_or(plan, sum, p.x.dtype(), {1}),  // not written without a residual
                 given_or(plan, rstd, DType::kFloat32, {p.x.dim(0)})};
  plan.steps.push_back(std::move(step));
  return plan;
}

Plan rms_norm_backward(const RmsNormBackward& p) {
  Plan plan;
  Numbering inputs(Operand::Of::kInputs), outputs(Operand::Of::kOutputs);
  const Operand dy = inputs.next(p.dy), s = inputs.next(p.s), weight = inputs.next(p.weight);
  const Operand rstd = inputs.next(p.rstd), dsum = inputs.next(p.dsum);
  const Operand ds = outputs.next(p.ds), dweight = outputs.next(p.dweight);
  const std::int64_t rows = p.dy.dim(0), features = p.dy.dim(1);
  if (features == 0) return plan;
  if (p.ds.present() && rows > 0) {
    Step step = row_step("rms_norm_backward", text(), rows, features,
                         {p.dy.dtype(), p.weight.dtype(), p.dsum.present()}, p.eps);
    step.reads = {dy, s, weight, rstd, is_absent(dsum) ? dy : dsum};
    step.writes = {ds};
    plan.steps.push_back(std::move(step));
  }
  if (p.dweight.present()) {
    add_sums(plan, "rms_norm_dweight", text(), rows, features, p.dy.dtype(), {dy, s, rstd},
             {dweight});
  }
  return plan;
}

}  // namespace graft::metal
