#include "graft/linear.h"

#include "backend/table.h"
#include "linear/metal.h"
#include "weight/weight.h"

namespace graft {
namespace {

constexpr const char* kForward = "linear";
constexpr const char* kBackward = "linear_backward";

void check(const LinearForward& p) {
  const Check check(kForward);
  check_weight(check, p.weight, p.x.device(), Direction::kForward);
  check.rank("x", p.x, 2);
  check.shape("x", p.x, {p.x.dim(0), p.weight.in_features()});
  check.shape("y", p.y, {p.x.dim(0), p.weight.out_features()});
  check.rows_output("y", p.y, p.x.device());
  check_bias(check, p.bias, p.weight, p.x.device());
}

void check(const LinearBackward& p) {
  const Check check(kBackward);
  check_weight(check, p.weight, p.dy.device(), Direction::kBackward);
  check.rank("dy", p.dy, 2);
  check.shape("dy", p.dy, {p.dy.dim(0), p.weight.out_features()});
  check.shape("dx", p.dx, {p.dy.dim(0), p.weight.in_features()});
  check.rows_output("dx", p.dx, p.dy.device());
}

}  // namespace

Support supports(const LinearForward& p) { return supports_on(p.x.device(), p); }
Support supports(const LinearBackward& p) { return supports_on(p.dy.device(), p); }

std::size_t scratch_bytes(const LinearForward& params, int threads) {
  return scratch_bytes_on(params.x.device(), kForward, params, threads);
}

std::size_t scratch_bytes(const LinearBackward& params, int threads) {
  return scratch_bytes_on(params.dy.device(), kBackward, params, threads);
}

void linear_forward(Context& context, const LinearForward& params) {
  check(params);
  run_on(params.x.device(), kForward, context, params);
}

void linear_backward(Context& context, const LinearBackward& params) {
  check(params);
  run_on(params.dy.device(), kBackward, context, params);
}

metal::Plan metal::plan(const LinearForward& params) {
  check(params);
  require(kForward, metal::supports(params));
  return metal::linear_forward(params);
}

metal::Plan metal::plan(const LinearBackward& params) {
  check(params);
  require(kBackward, metal::supports(params));
  return metal::linear_backward(params);
}

}  // namespace graft
