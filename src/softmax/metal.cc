#include "backend/metal/rows.h"
#include "backend/metal/shaders.h"
#include "checks.h"
#include "graft/metal_softmax.h"

namespace graft::metal {

Support supports(const Softmax& call) {
  return all_of({is_floating(call.dtype), rows_fit(call.rows, call.features)});
}

Call softmax_forward(const Softmax& call) {
  require("softmax", supports(call));
  const bool kept = kept_of(call.features) > 0;
  Call result =
      row_call(kept ? "softmax" : "softmax_long", "x", call.rows, call.features, call.dtype);
  result.inputs = {"x", "scale"};
  result.outputs = {"y"};
  result.header += shaders::kSoftmax;
  result.body += kept ? "softmax_short<T, KEPT>(x, scale, y, features, team);\n"
                      : "softmax_long<T>(x, scale, y, features, team);\n";
  return result;
}

Call softmax_backward(const Softmax& call) {
  require("softmax_backward", supports(call));
  Call result = row_call("softmax_backward", "dy", call.rows, call.features, call.dtype);
  result.inputs = {"dy", "y", "scale"};
  result.outputs = {"dx"};
  result.header += shaders::kSoftmax;
  result.body += "softmax_backward<T, KEPT>(dy, y, scale, dx, features, team);\n";
  return result;
}

}  // namespace graft::metal
