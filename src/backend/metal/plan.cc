#include "backend/metal/plan.h"

namespace graft::metal {
namespace {

// What a type is called in a text, and in a name.
const char* text_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "float";
    case DType::kFloat16:
      return "half";
    case DType::kBFloat16:
      return "bfloat";
    case DType::kInt32:
      return "int";
  }
  return "";
}

std::string text_of(const Kernel::Argument& argument) {
  if (const auto* dtype = std::get_if<DType>(&argument)) return text_of(*dtype);
  if (const auto* flag = std::get_if<bool>(&argument)) return *flag ? "true" : "false";
  return std::to_string(std::get<int>(argument));
}

}  // namespace

std::string Kernel::name() const {
  std::string name = "graft_";
  name += function;
  for (const Argument& argument : arguments) name.append("_").append(metal::text_of(argument));
  return name;
}

std::string Kernel::text() const {
  std::string text =
      "#include <metal_stdlib>\n#include <metal_simdgroup_matrix>\nusing namespace metal;\n";
  for (const char* part : parts) text += part;
  std::string instance = function + "<";
  for (const Argument& argument : arguments) {
    if (instance.back() != '<') instance += ", ";
    instance += metal::text_of(argument);
  }
  instance += ">";
  text.append("template [[host_name(\"").append(name()).append("\")]] [[kernel]] decltype(");
  return text.append(instance).append(") ").append(instance).append(";\n");
}

Operand Numbering::next(const ConstTensorView& view) {
  if (!view.present()) return kAbsent;
  return {of_, count_++};
}

Operand temporary(Plan& plan, DType dtype, std::vector<std::int64_t> shape) {
  plan.temporaries.push_back({dtype, std::move(shape)});
  return {Operand::Of::kTemporaries, static_cast<int>(plan.temporaries.size()) - 1};
}

Operand given_or(Plan& plan, const Operand& operand, DType dtype, std::vector<std::int64_t> shape) {
  return is_absent(operand) ? temporary(plan, dtype, std::move(shape)) : operand;
}

}  // namespace graft::metal
