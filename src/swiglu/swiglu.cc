#include "graft/swiglu.h"

#include "checks.h"
#include "swiglu/cpu.h"

namespace graft {

namespace {

constexpr const char* kForward = "swiglu";
constexpr const char* kBackward = "swiglu_backward";

Support supports_gate(const ConstTensorView& gate) {
  return all_of({on_cpu(gate.device()), float_on_cpu("gate", gate)});
}

}  // namespace

Support supports(const SwigluForward& params) { return supports_gate(params.gate); }

Support supports(const SwigluBackward& params) { return supports_gate(params.gate); }

void swiglu_forward(Context& context, const SwigluForward& params) {
  const Check check(kForward);
  check.rank("gate", params.gate, 2);
  check.last_axis_dense("gate", params.gate);
  check.matrix("up", params.up, params.gate);
  check.output("y", params.y, params.gate);
  require(kForward, supports(params));
  cpu::swiglu_forward(context, params);
}

void swiglu_backward(Context& context, const SwigluBackward& params) {
  const Check check(kBackward);
  check.rank("gate", params.gate, 2);
  check.last_axis_dense("gate", params.gate);
  check.matrix("up", params.up, params.gate);
  check.matrix("dy", params.dy, params.gate);
  if (params.dgate.present()) check.output("dgate", params.dgate, params.gate);
  if (params.dup.present()) check.output("dup", params.dup, params.gate);
  require(kBackward, supports(params));
  cpu::swiglu_backward(context, params);
}

}  // namespace graft
