#include "graft/softmax.h"

#include <cmath>
#include <string>

#include "checks.h"
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
  if (!(std::isfinite(scale) && scale > 0.0f)) {
    check.fail("scale: expected a positive number, got " + std::to_string(scale));
  }
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

Support supports_on_cpu(Device device) {
  return all_of({on_cpu(device), Support::no("no CPU kernel for softmax yet")});
}

}  // namespace

Support supports(const SoftmaxForward& params) {
  if (params.x.device().type == DeviceType::kMetal) return metal::supports(params);
  return supports_on_cpu(params.x.device());
}

Support supports(const SoftmaxBackward& params) {
  if (params.dy.device().type == DeviceType::kMetal) return metal::supports(params);
  return supports_on_cpu(params.dy.device());
}

void softmax_forward(Context&, const SoftmaxForward& params) {
  check(params);
  require(kForward, supports_on_cpu(params.x.device()));
}

void softmax_backward(Context&, const SoftmaxBackward& params) {
  check(params);
  require(kBackward, supports_on_cpu(params.dy.device()));
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
