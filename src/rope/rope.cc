#include "graft/rope.h"

#include <cmath>
#include <string>

#include "rope/cpu.h"
#include "rope/rotary_checks.h"

namespace graft {

void check_rotary(const Check& check, const Rotary& rotary) {
  if (!(std::isfinite(rotary.theta) && rotary.theta > 0.0f)) {
    check.fail("rotary.theta: expected a positive number, got " + std::to_string(rotary.theta));
  }
  if (rotary.position < 0) {
    check.fail("rotary.position: expected at least 0, got " + std::to_string(rotary.position));
  }
}

Support supports(const Rope& params) {
  return all_of({on_cpu(params.x.device()), float_on_cpu("x", params.x)});
}

std::size_t scratch_bytes(const Rope& params, int threads) {
  require("rope", supports(params));
  return cpu::scratch_bytes(params, threads);
}

void rope(Context& context, const Rope& params) {
  const Check check("rope");
  const ConstTensorView& x = params.x;
  check.rank("x", x, 4);
  if (x.dim(3) % 2 != 0) {
    check.fail("x: expected an even last dimension, got " + x.shape_string());
  }
  check.last_axis_dense("x", x);
  check.shape("y", params.y, {x.dim(0), x.dim(1), x.dim(2), x.dim(3)});
  check.dtype("y", params.y, {x.dtype()});
  check.device("y", params.y, x.device());
  check.last_axis_dense("y", params.y);
  check.writable("y", params.y);
  check_rotary(check, params.rotary);
  require("rope", supports(params));
  cpu::rope(context, params);
}

}  // namespace graft
