#include "graft/linear.h"

#include "checks.h"
#include "linear/cpu.h"
#include "linear/metal.h"
#include "weight/weight.h"

namespace graft {
namespace {

void check(const LinearForward& p) {
  const Check check("linear");
  check_weight(check, p.weight, p.x.device(), Direction::kForward);
  check.rank("x", p.x, 2);
  check.shape("x", p.x, {p.x.dim(0), p.weight.in_features()});
  check.shape("y", p.y, {p.x.dim(0), p.weight.out_features()});
  check.rows_output("y", p.y, p.x.device());
  if (p.bias.present()) {
    check.shape("bias", p.bias, {p.weight.out_features()});
    check.device("bias", p.bias, p.x.device());
  }
}

void check(const LinearBackward& p) {
  const Check check("linear_backward");
  check_weight(check, p.weight, p.dy.device(), Direction::kBackward);
  check.rank("dy", p.dy, 2);
  check.shape("dy", p.dy, {p.dy.dim(0), p.weight.out_features()});
  check.shape("dx", p.dx, {p.dy.dim(0), p.weight.in_features()});
  check.rows_output("dx", p.dx, p.dy.device());
}

Support supports_on_cpu(const LinearForward& p) {
  return all_of({on_cpu(p.x.device()), float_on_cpu("x", p.x), weight_on_cpu(p.weight),
                 float_on_cpu("bias", p.bias), float_on_cpu("y", p.y)});
}

Support supports_on_cpu(const LinearBackward& p) {
  return all_of({on_cpu(p.dy.device()), float_on_cpu("dy", p.dy), weight_on_cpu(p.weight),
                 float_on_cpu("dx", p.dx)});
}

}  // namespace

Support supports(const LinearForward& p) {
  if (p.x.device().type == DeviceType::kMetal) return metal::supports(p);
  return supports_on_cpu(p);
}

Support supports(const LinearBackward& p) {
  if (p.dy.device().type == DeviceType::kMetal) return metal::supports(p);
  return supports_on_cpu(p);
}

void linear_forward(Context& context, const LinearForward& params) {
  check(params);
  require("linear", supports_on_cpu(params));
  cpu::linear_forward(context, params);
}

void linear_backward(Context& context, const LinearBackward& params) {
  check(params);
  require("linear_backward", supports_on_cpu(params));
  cpu::linear_backward(context, params);
}

metal::Plan metal::plan(const LinearForward& params) {
  check(params);
  require("linear", metal::supports(params));
  return metal::linear_forward(params);
}

metal::Plan metal::plan(const LinearBackward& params) {
  check(params);
  require("linear_backward", metal::supports(params));
  return metal::linear_backward(params);
}

}  // namespace graft
