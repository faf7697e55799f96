#include "graft/layer_norm.h"

#include "backend/table.h"
#include "layer_norm/metal.h"

namespace graft {

namespace {

constexpr const char* kForward = "layer_norm";
constexpr const char* kBackward = "layer_norm_backward";

// The first matrix of a call, which the others are held against.
void check_first(const Check& check, const char* name, const ConstTensorView& matrix, float eps) {
  check.rank(name, matrix, 2);
  check.floating(name, matrix);
  check.last_axis_dense(name, matrix);
  check.epsilon(eps);
}

// A weight or a bias, if there is one.
void check_affine(const Check& check, const char* name, const ConstTensorView& vector,
                  const ConstTensorView& x) {
  if (!vector.present()) return;
  check.shape(name, vector, {x.dim(1)});
  check.floating(name, vector);
  check.device(name, vector, x.device());
  check.dense(name, vector);
}

void check(const LayerNormForward& p) {
  const Check check(kForward);
  check_first(check, "x", p.x, p.eps);
  check_affine(check, "weight", p.weight, p.x);
  check_affine(check, "bias", p.bias, p.x);
  check.output("y", p.y, p.x);
  if (p.mean.present()) check.floats("mean", p.mean, p.x.dim(0), p.x);
  if (p.rstd.present()) check.floats("rstd", p.rstd, p.x.dim(0), p.x);
}

void check(const LayerNormBackward& p) {
  const Check check(kBackward);
  check_first(check, "dy", p.dy, p.eps);
  check.matrix("x", p.x, p.dy);
  check_affine(check, "weight", p.weight, p.dy);
  check.that(p.mean.present() == p.rstd.present(),
             "rstd: expected together with mean and only then");
  if (p.mean.present()) check.floats("mean", p.mean, p.dy.dim(0), p.dy);
  if (p.rstd.present()) check.floats("rstd", p.rstd, p.dy.dim(0), p.dy);
  if (p.dx.present()) check.output("dx", p.dx, p.dy);
  if (p.dweight.present()) check.floats("dweight", p.dweight, p.dy.dim(1), p.dy);
  if (p.dbias.present()) check.floats("dbias", p.dbias, p.dy.dim(1), p.dy);
}

}  // namespace

Support supports(const LayerNormForward& p) { return supports_on(p.x.device(), p); }
Support supports(const LayerNormBackward& p) { return supports_on(p.dy.device(), p); }

std::size_t scratch_bytes(const LayerNormForward& params, int threads) {
  return scratch_bytes_on(params.x.device(), kForward, params, threads);
}

std::size_t scratch_bytes(const LayerNormBackward& params, int threads) {
  return scratch_bytes_on(params.dy.device(), kBackward, params, threads);
}

void layer_norm_forward(Context& context, const LayerNormForward& p) {
  check(p);
  run_on(p.x.device(), kForward, context, p);
}

void layer_norm_backward(Context& context, const LayerNormBackward& p) {
  check(p);
  run_on(p.dy.device(), kBackward, context, p);
}

metal::Plan metal::plan(const LayerNormForward& params) {
  check(params);
  require(kForward, metal::supports(params));
  return metal::layer_norm_forward(params);
}

metal::Plan metal::plan(const LayerNormBackward& params) {
  check(params);
  require(kBackward, metal::supports(params));
  return metal::layer_norm_backward(params);
}

}  // namespace graft
