#include "graft/rms_norm.h"

#include "backend/table.h"
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

}  // namespace

Support supports(const RmsNormForward& p) { return supports_on(p.x.device(), p); }
Support supports(const RmsNormBackward& p) { return supports_on(p.dy.device(), p); }

std::size_t scratch_bytes(const RmsNormForward& params, int threads) {
  return scratch_bytes_on(params.x.device(), kForward, params, threads);
}

std::size_t scratch_bytes(const RmsNormBackward& params, int threads) {
  return scratch_bytes_on(params.dy.device(), kBackward, params, threads);
}

void rms_norm_forward(Context& context, const RmsNormForward& p) {
  check(p);
  run_on(p.x.device(), kForward, context, p);
}

void rms_norm_backward(Context& context, const RmsNormBackward& p) {
  check(p);
  run_on(p.dy.device(), kBackward, context, p);
}

metal::Plan metal::plan(const RmsNormForward& params) {
  check(params);
  require(kForward, metal::supports(params));
  return metal::rms_norm_forward(params);
}

metal::Plan metal::plan(const RmsNormBackward& params) {
  check(params);
  require(kBackward, metal::supports(params));
  return metal::rms_norm_backward(params);
}

}  // namespace graft
