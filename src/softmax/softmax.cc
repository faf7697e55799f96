#include "graft/softmax.h"

#include <cmath>
#include <string>

#include "checks.h"
#include "softmax/cpu.h"

namespace graft {

namespace {

constexpr const char* kForward = "softmax";
constexpr const char* kBackward = "softmax_backward";

// The first matrix of a call, which the others are held against.
void check_first(const Check& check, const char* name, const ConstTensorView& matrix, float scale) {
  check.rank(name, matrix, 2);
  check.floating(name, matrix);
  check.last_axis_dense(name, matrix);
  if (!(std::isfinite(scale) && scale > 0.0f)) {
    check.fail("scale: expected a positive number, got " + std::to_string(scale));
  }
}

}  // namespace

Support supports(const SoftmaxForward& params) {
  return all_of({on_cpu(params.x.device()), float_on_cpu("x", params.x)});
}

Support supports(const SoftmaxBackward& params) {
  return all_of({on_cpu(params.dy.device()), float_on_cpu("dy", params.dy)});
}

void softmax_forward(Context& context, const SoftmaxForward& params) {
  const Check check(kForward);
  check_first(check, "x", params.x, params.scale);
  check.output("y", params.y, params.x);
  require(kForward, supports(params));
  cpu::softmax_forward(context, params);
}

void softmax_backward(Context&, const SoftmaxBackward& params) {
  const Check check(kBackward);
  check_first(check, "dy", params.dy, params.scale);
  check.matrix("y", params.y, params.dy);
  check.output("dx", params.dx, params.dy);
  require(kBackward, supports(params));
  cpu::softmax_backward(params);
}

}  // namespace graft
