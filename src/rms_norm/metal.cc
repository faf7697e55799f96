#include "backend/metal/rows.h"
#include "backend/metal/shaders.h"
#include "checks.h"
#include "graft/metal_rms_norm.h"

namespace graft::metal {
namespace {

// Names the text of a call with or without a residual.
std::string with_residual(const char* kernel, const RmsNorm& call) {
  return std::string(call.residual ? "add_" : "") + kernel;
}

// The weight's type is in the argument: of another one MLX would make another text of one name.
void add_arguments(Call& result, const RmsNorm& call) {
  result.header += shaders::kRmsNorm;
  result.arguments.push_back({"W", call.weight});
}

}  // namespace

Support supports(const RmsNorm& call) {
  return all_of(
      {is_floating(call.dtype), is_floating(call.weight), rows_fit(call.rows, call.features)});
}

Call rms_norm_forward(const RmsNorm& call) {
  require("rms_norm", supports(call));
  Call result =
      row_call(with_residual("rms_norm", call), "x", call.rows, call.features, call.dtype);
  add_arguments(result, call);
  if (call.residual) {
    result.inputs = {"x", "weight", "residual", "eps"};
    result.outputs = {"y", "sum", "rstd"};
    result.body +=
        "rms_norm<T, KEPT, true>(x, weight, residual, eps, y, sum, rstd, features, team);\n";
  } else {
    result.inputs = {"x", "weight", "eps"};
    result.outputs = {"y", "rstd"};
    result.body += "rms_norm<T, KEPT, false>(x, weight, x, eps, y, y, rstd, features, team);\n";
  }
  return result;
}

Call rms_norm_backward(const RmsNorm& call) {
  require("rms_norm_backward", supports(call));
  Call result = row_call(with_residual("rms_norm_backward", call), "dy", call.rows, call.features,
                         call.dtype);
  add_arguments(result, call);
  result.inputs = {"dy", "s", "weight", "rstd"};
  if (call.residual) result.inputs.push_back("dsum");
  result.outputs = {"ds"};
  result.body += call.residual
                     ? "rms_norm_backward<T, KEPT, true>(dy, s, weight, rstd, dsum, ds, features,\n"
                       "                                 team);\n"
                     : "rms_norm_backward<T, KEPT, false>(dy, s, weight, rstd, dy, ds, features,\n"
                       "                                  team);\n";
  return result;
}

Call rms_norm_dweight(const RmsNorm& call) {
  require("rms_norm_backward", supports(call));
  Call result = block_call("rms_norm_dweight", "dy", call.rows, call.features);
  result.header += shaders::kRmsNorm;
  result.arguments.push_back({"T", call.dtype});
  result.inputs = {"dy", "s", "rstd"};
  result.outputs = {"dweight_blocks"};
  result.body +=
      "dweight_blocks[ulong(block) * features + col] =\n"
      "    rms_norm_dweight(dy, s, rstd, features, col, first, end);\n";
  return result;
}

}  // namespace graft::metal
