#include "graft/softmax.h"

#include <cmath>
#include <string>

#include "checks.h"

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

Support supports_on(Device device) {
  return all_of({on_cpu(device), Support::no("no CPU kernel for softmax yet")});
}

}  // namespace

Support supports(const SoftmaxForward& params) { return supports_on(params.x.device()); }

Support supports(const SoftmaxBackward& params) { return supports_on(params.dy.device()); }

void softmax_forward(Context&, const SoftmaxForward& params) {
  const Check check(kForward);
  check_first(check, "x", params.x, params.scale);
  check.output("y", params.y, params.x);
  require(kForward, supports(params));
}

void softmax_backward(Context&, const SoftmaxBackward& params) {
  const Check check(kBackward);
  check_first(check, "dy", params.dy, params.scale);
  check.matrix("y", params.y, params.dy);
  check.output("dx", params.dx, params.dy);
  require(kBackward, supports(params));
}

}  // namespace graft
