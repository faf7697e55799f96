#include "layer_norm/metal.h"

#include "backend/metal/limits.h"
#include "backend/metal/plan.h"
#include "backend/metal/rows.h"
#include "backend/metal/shaders.h"
#include "backend/table.h"

namespace graft::metal {
namespace {

std::vector<const char*> text() { return {shaders::kRows, shaders::kLayerNorm}; }

}  // namespace

Support supports(const LayerNormForward& p) {
  return all_of({is_floating(p.x.dtype()), vector_fits("weight", p.weight),
                 vector_fits("bias", p.bias), rows_fit(p.x.dim(0), p.x.dim(1)), is_dense("x", p.x),
                 is_dense("y", p.y)});
}

Support supports(const LayerNormBackward& p) {
  if (!p.mean.present() || !p.rstd.present()) {
    return Support::no("mean and rstd: Metal kernels read what forward wrote");
  }
  return all_of({is_floating(p.dy.dtype()), vector_fits("weight", p.weight),
                 rows_fit(p.dy.dim(0), p.dy.dim(1)), is_dense("dy", p.dy), is_dense("x", p.x),
                 is_dense("dx", p.dx)});
}

Plan layer_norm_forward(const LayerNormForward& p) {
  Plan plan;
  if (p.x.size() == 0) return plan;
  Numbering inputs(Operand::Of::kInputs), outputs(Operand::Of::kOutputs);
  const Operand x = inputs.next(p.x), weight = inputs.next(p.weight), bias = inputs.next(p.bias);
  const Operand y = outputs.next(p.y), mean = outputs.next(p.mean), rstd = outputs.next(p.rstd);
  const DType dtype = p.x.dtype();
  Step step =
      row_step("layer_norm", text(), p.x.dim(0), p.x.dim(1),
               {dtype, p.weight.present() ? p.weight.dtype() : dtype,
                p.bias.present() ? p.bias.dtype() : dtype, p.weight.present(), p.bias.present()},
               p.eps);
  step.reads = {x, is_absent(weight) ? x : weight, is_absent(bias) ? x : bias};
  step.writes = {y, given_or(plan, mean, DType::kFloat32, {p.x.dim(0)}),
                 given_or(plan, rstd, DType::kFloat32, {p.x.dim(0)})};
  plan.steps.push_back(std::move(step));
  return plan;
}

Plan layer_norm_backward(const LayerNormBackward& p) {
  Plan plan;
  Numbering inputs(Operand::Of::kInputs), outputs(Operand::Of::kOutputs);
  const Operand dy = inputs.next(p.dy), x = inputs.next(p.x), weight = inputs.next(p.weight);
  const Operand mean = inputs.next(p.mean), rstd = inputs.next(p.rstd);
  const Operand dx = outputs.next(p.dx), dweight = outputs.next(p.dweight);
  const Operand dbias = outputs.next(p.dbias);
  const std::int64_t rows = p.dy.dim(0), features = p.dy.dim(1);
  const DType dtype = p.dy.dtype();
  if (features == 0) return plan;
  if (p.dx.present() && rows > 0) {
    Step step =
        row_step("layer_norm_backward", text(), rows, features,
                 {dtype, p.weight.present() ? p.weight.dtype() : dtype, p.weight.present()}, p.eps);
    step.reads = {dy, x, is_absent(weight) ? dy : weight, mean, rstd};
    step.writes = {dx};
    plan.steps.push_back(std::move(step));
  }
  if (p.dweight.present() || p.dbias.present()) {
    add_sums(plan, "layer_norm_sums", text(), rows, features, dtype, {dy, x, mean, rstd},
             {dweight, dbias});
  }
  return plan;
}

}  // namespace graft::metal
