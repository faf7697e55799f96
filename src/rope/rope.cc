#include "graft/rope.h"

#include "backend/table.h"

namespace graft {

Support supports(const Rope& params) { return supports_on(params.x.device(), params); }

std::size_t scratch_bytes(const Rope& params, int threads) {
  return scratch_bytes_on(params.x.device(), "rope", params, threads);
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
  check.rotary(params.rotary);
  run_on(x.device(), "rope", context, params);
}

}  // namespace graft
