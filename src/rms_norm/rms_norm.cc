#include "graft/rms_norm.h"

#include "checks.h"
#include "rms_norm/cpu.h"
#include "rms_norm/metal.h"

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

void check(const RmsNormForward& p) {
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
}

void check(const RmsNormBackward& p) {
  const Check check(kBackward);
  check.rank("dy", p.dy, 2);
  check.last_axis_dense("dy", p.dy);
  check_common(check, p.weight, p.eps, p.dy);
  check.matrix("s", p.s, p.dy);
  if (p.rstd.present()) check.floats("rstd", p.rstd, p.dy.dim(0), p.dy);
  if (p.dsum.present()) check.matrix("dsum", p.dsum, p.dy);
  if (p.ds.present()) check.output("ds", p.ds, p.dy);
  if (p.dweight.present()) check.floats("dweight", p.dweight, p.dy.dim(1), p.dy);
}

Support supports_on_cpu(const RmsNormForward& p) {
  return all_of({on_cpu(p.x.device()), float_on_cpu("x", p.x), float_on_cpu("weight", p.weight)});
}

Support supports_on_cpu(const RmsNormBackward& p) {
  return all_of(
      {on_cpu(p.dy.device()), float_on_cpu("dy", p.dy), float_on_cpu("weight", p.weight)});
}

}  // namespace

Support supports(const RmsNormForward& p) {
  if (p.x.device().type == DeviceType::kMetal) return metal::supports(p);
  return supports_on_cpu(p);
}

Support supports(const RmsNormBackward& p) {
  if (p.dy.device().type == DeviceType::kMetal) return metal::supports(p);
  return supports_on_cpu(p);
}

void rms_norm_forward(Context& context, const RmsNormForward& p) {
  check(p);
  require(kForward, supports_on_cpu(p));
  cpu::rms_norm_forward(context, p);
}

void rms_norm_backward(Context& context, const RmsNormBackward& p) {
  check(p);
  require(kBackward, supports_on_cpu(p));
  cpu::rms_norm_backward(context, p);
}

metal::Plan metal::plan(const RmsNormForward& p) {
  check(p);
  require(kForward, metal::supports(p));
  return metal::rms_norm_forward(p);
}

metal::Plan metal::plan(const RmsNormBackward& p) {
  check(p);
  require(kBackward, metal::supports(p));
  return metal::rms_norm_backward(p);
}

}  // namespace graft
