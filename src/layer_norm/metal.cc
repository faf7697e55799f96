#include "backend/metal/rows.h"
#include "backend/metal/shaders.h"
#include "checks.h"
#include "graft/metal_layer_norm.h"

namespace graft::metal {
namespace {

// The vectors' types are in arguments: of others MLX would make another text of one name.
void add_argument(Call& result, const char* name, const std::optional<DType>& vector) {
  if (vector) result.arguments.push_back({name, *vector});
}

std::string flag(bool given) { return given ? "true" : "false"; }

}  // namespace

Support supports(const LayerNorm& call) {
  return all_of({is_floating(call.dtype), is_floating(call.weight.value_or(DType::kFloat32)),
                 is_floating(call.bias.value_or(DType::kFloat32)),
                 rows_fit(call.rows, call.features)});
}

Call layer_norm_forward(const LayerNorm& call) {
  require("layer_norm", supports(call));
  const bool weight = call.weight.has_value(), bias = call.bias.has_value();
  const std::string kernel =
      std::string("layer_norm") + (weight ? "_weight" : "") + (bias ? "_bias" : "");
  Call result = row_call(kernel, "x", call.rows, call.features, call.dtype);
  result.header += shaders::kLayerNorm;
  result.inputs = {"x"};
  if (weight) result.inputs.push_back("weight");
  if (bias) result.inputs.push_back("bias");
  result.inputs.push_back("eps");
  result.outputs = {"y", "mean", "rstd"};
  add_argument(result, "W", call.weight);
  add_argument(result, "B", call.bias);
  result.body += "layer_norm<T, KEPT, " + flag(weight) + ", " + flag(bias) + ">(x, " +
                 (weight ? "weight" : "x") + ", " + (bias ? "bias" : "x") +
                 ", eps, y, mean, rstd,\n    features, team);\n";
  return result;
}

Call layer_norm_backward(const LayerNorm& call) {
  require("layer_norm_backward", supports(call));
  const bool weight = call.weight.has_value();
  const std::string kernel = std::string("layer_norm_backward") + (weight ? "_weight" : "");
  Call result = row_call(kernel, "dy", call.rows, call.features, call.dtype);
  result.header += shaders::kLayerNorm;
  result.inputs = {"dy", "x", "mean", "rstd"};
  if (weight) result.inputs.push_back("weight");
  result.outputs = {"dx"};
  add_argument(result, "W", call.weight);
  result.body += "layer_norm_backward<T, KEPT, " + flag(weight) + ">(dy, x, mean, rstd, " +
                 (weight ? "weight" : "dy") + ", dx, features, team);\n";
  return result;
}

Call layer_norm_sums(const LayerNorm& call) {
  require("layer_norm_backward", supports(call));
  Call result = block_call("layer_norm_sums", "dy", call.rows, call.features);
  result.header += shaders::kLayerNorm;
  result.arguments.push_back({"T", call.dtype});
  result.inputs = {"dy", "x", "mean", "rstd"};
  result.outputs = {"dweight_blocks", "dbias_blocks"};
  result.body +=
      "layer_norm_sums(dy, x, mean, rstd, dweight_blocks, dbias_blocks, features, col, block,\n"
      "                first, end);\n";
  return result;
}

}  // namespace graft::metal
