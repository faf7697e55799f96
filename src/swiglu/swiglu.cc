#include "graft/swiglu.h"

#include "backend/table.h"

namespace graft {

namespace {

constexpr const char* kForward = "swiglu";
constexpr const char* kBackward = "swiglu_backward";

}  // namespace

Support supports(const SwigluForward& params) { return supports_on(params.gate.device(), params); }
Support supports(const SwigluBackward& params) { return supports_on(params.gate.device(), params); }

std::size_t scratch_bytes(const SwigluForward& params, int threads) {
  return scratch_bytes_on(params.gate.device(), kForward, params, threads);
}

std::size_t scratch_bytes(const SwigluBackward& params, int threads) {
  return scratch_bytes_on(params.gate.device(), kBackward, params, threads);
}

void swiglu_forward(Context& context, const SwigluForward& params) {
  const Check check(kForward);
  check.rank("gate", params.gate, 2);
  check.last_axis_dense("gate", params.gate);
  check.matrix("up", params.up, params.gate);
  check.output("y", params.y, params.gate);
  run_on(params.gate.device(), kForward, context, params);
}

void swiglu_backward(Context& context, const SwigluBackward& params) {
  const Check check(kBackward);
  check.rank("gate", params.gate, 2);
  check.last_axis_dense("gate", params.gate);
  check.matrix("up", params.up, params.gate);
  check.matrix("dy", params.dy, params.gate);
  if (params.dgate.present()) check.output("dgate", params.dgate, params.gate);
  if (params.dup.present()) check.output("dup", params.dup, params.gate);
  run_on(params.gate.device(), kBackward, context, params);
}

}  // namespace graft
