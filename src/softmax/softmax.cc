#include "graft/softmax.h"

#include "backend/table.h"
#include "softmax/metal.h"

namespace graft {

namespace {

constexpr const char* kForward = "softmax";
constexpr const char* kBackward = "softmax_backward";

// The first matrix of a call, which the others are held against.
void check_first(const Check& check, const char* name, const ConstTensorView& matrix, float scale) {
  check.rank(name, matrix, 2);
  check.floating(name, matrix);
  check.last_axis_dense(name, matrix);
  check.scale(scale);
}

void check(const SoftmaxForward& params) {
  const Check check(kForward);
  check_first(check, "x", params.x, params.scale);
  check.output("y", params.y, params.x);
}

void check(const SoftmaxBackward& params) {
  const Check check(kBackward);
  check_first(check, "dy", params.dy, params.scale);
  check.matrix("y", params.y, params.dy);
  check.output("dx", params.dx, params.dy);
}

}  // namespace

Support supports(const SoftmaxForward& params) { return supports_on(params.x.device(), params); }
Support supports(const SoftmaxBackward& params) { return supports_on(params.dy.device(), params); }

std::size_t scratch_bytes(const SoftmaxForward& params, int threads) {
  return scratch_bytes_on(params.x.device(), kForward, params, threads);
}

std::size_t scratch_bytes(const SoftmaxBackward& params, int threads) {
  return scratch_bytes_on(params.dy.device(), kBackward, params, threads);
}

void softmax_forward(Context& context, const SoftmaxForward& params) {
  check(params);
  run_on(params.x.device(), kForward, context, params);
}

void softmax_backward(Context& context, const SoftmaxBackward& params) {
  check(params);
  run_on(params.dy.device(), kBackward, context, params);
}

metal::Plan metal::plan(const SoftmaxForward& params) {
  check(params);
  require(kForward, metal::supports(params));
  return metal::softmax_forward(params);
}

metal::Plan metal::plan(const SoftmaxBackward& params) {
  check(params);
  require(kBackward, metal::supports(params));
  return metal::softmax_backward(params);
}

}  // namespace graft
