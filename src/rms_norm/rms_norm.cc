#include "graft/rms_norm.h"

#include "checks.h"
#include "rms_norm/cpu.h"

namespace graft {

namespace {

constexpr const char* kForward = "rms_norm";
constexpr const char* kBackward = "rms_norm_backward";

void check_common(const Check& check, const ConstTensorView& weight, float eps,
                  const ConstTensorView& x) {
  check.shape("weight", weight, {x.dim(1)});
  check.device("weight", weight, x.device());
  check.dense("weight", weight);
  check.epsilon(eps);
}

}  // namespace

Support supports(const RmsNormForward& p) {
  return all_of({on_cpu(p.x.device()), float_on_cpu("x", p.x), float_on_cpu("weight", p.weight)});
}

Support supports(const RmsNormBackward& p) {
  return all_of(
      {on_cpu(p.dy.device()), float_on_cpu("dy", p.dy), float_on_cpu("weight", p.weight)});
}

std::size_t scratch_bytes(const RmsNormForward& params, int threads) {
  require(kForward, supports(params));
  return cpu::scratch_bytes(params, threads);
}

std::size_t scratch_bytes(const RmsNormBackward& params, int threads) {
  require(kBackward, supports(params));
  return cpu::scratch_bytes(params, threads);
}

void rms_norm_forward(Context& context, const RmsNormForward& p) {
  const Check check(kForward);
  check.rank("x", p.x, 2);
  check.last_axis_dense("x", p.x);
  check_common(check, p.weight, p.eps, p.x);
  check.that(p.residual.present() == p.sum.present(),
             "sum: expected together with residual and only then");
  if (p.residual.present()) {
    check.matrix("residual", p.residual, p.x);
    check.output("sum", p.sum, p.x);
  }
  check.output("y", p.y, p.x);
  if (p.rstd.present()) check.floats("rstd", p.rstd, p.x.dim(0), p.x);
  require(kForward, supports(p));
  cpu::rms_norm_forward(context, p);
}

void rms_norm_backward(Context& context, const RmsNormBackward& p) {
  const Check check(kBackward);
  check.rank("dy", p.dy, 2);
  check.last_axis_dense("dy", p.dy);
  check_common(check, p.weight, p.eps, p.dy);
  check.matrix("s", p.s, p.dy);
  if (p.rstd.present()) check.floats("rstd", p.rstd, p.dy.dim(0), p.dy);
  if (p.dsum.present()) check.matrix("dsum", p.dsum, p.dy);
  if (p.ds.present()) check.output("ds", p.ds, p.dy);
  if (p.dweight.present()) check.floats("dweight", p.dweight, p.dy.dim(1), p.dy);
  require(kBackward, supports(p));
  cpu::rms_norm_backward(context, p);
}

}  // namespace graft
