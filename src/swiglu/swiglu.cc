#include "graft/swiglu.h"

#include "checks.h"
#include "swiglu/cpu.h"

namespace graft {

namespace {

constexpr const char* kForward = "swiglu";
constexpr const char* kBackward = "swiglu_backward";

// One more (M, features) matrix beside `gate`.
void check_matrix(const Check& check, const char* name, const ConstTensorView& matrix,
                  const ConstTensorView& gate) {
  check.shape(name, matrix, {gate.dim(0), gate.dim(1)});
  check.dtype(name, matrix, {gate.dtype()});
  check.device(name, matrix, gate.device());
  check.last_axis_dense(name, matrix);
}

void check_output(const Check& check, const char* name, const TensorView& matrix,
                  const ConstTensorView& gate) {
  check_matrix(check, name, matrix, gate);
  check.writable(name, matrix);
}

Support supports_gate(const ConstTensorView& gate) {
  return all_of({on_cpu(gate.device()), float_on_cpu("gate", gate)});
}

}  // namespace

Support supports(const SwigluForward& params) { return supports_gate(params.gate); }

Support supports(const SwigluBackward& params) { return supports_gate(params.gate); }

void swiglu_forward(Context&, const SwigluForward& params) {
  const Check check(kForward);
  check.rank("gate", params.gate, 2);
  check.last_axis_dense("gate", params.gate);
  check_matrix(check, "up", params.up, params.gate);
  check_output(check, "y", params.y, params.gate);
  require(kForward, supports(params));
  cpu::swiglu_forward(params);
}

void swiglu_backward(Context&, const SwigluBackward& params) {
  const Check check(kBackward);
  check.rank("gate", params.gate, 2);
  check.last_axis_dense("gate", params.gate);
  check_matrix(check, "up", params.up, params.gate);
  check_matrix(check, "dy", params.dy, params.gate);
  if (params.dgate.present()) check_output(check, "dgate", params.dgate, params.gate);
  if (params.dup.present()) check_output(check, "dup", params.dup, params.gate);
  require(kBackward, supports(params));
  cpu::swiglu_backward(params);
}

}  // namespace graft
