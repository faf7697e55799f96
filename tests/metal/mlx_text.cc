#include "metal/mlx_text.h"

#include <fstream>
#include <regex>
#include <set>

namespace graft::standin {
namespace {

const std::string kKernels = "mlx/backend/metal/kernels/";

void append_file(const std::string& name, std::set<std::string>& seen, std::string& text) {
  static const std::regex include(R"(\s*#include "(mlx/[^"]+)\".*)");
  if (!seen.insert(name).second) return;
  std::ifstream file(GRAFT_MLX_INCLUDE "/" + name);
  if (!file) throw MissingText("the MLX that this is built with has no " + name);
  std::string line;
  std::smatch match;
  while (std::getline(file, line)) {
    if (std::regex_match(line, match, include)) {
      if (match[1] != kKernels + "utils.h") append_file(match[1], seen, text);
    } else if (line != "#pragma once") {
      text += line + "\n";
    }
  }
}

void set_constants(const std::map<std::string, bool>& constants, std::string& text) {
  static const std::regex of_buffer(R"(,\s*function_constant\(\w+\))");
  for (const auto& [name, value] : constants) {
    const std::regex declaration("constant bool " + name + R"( \[\[function_constant\(\d+\)\]\];)");
    text = std::regex_replace(
        text, declaration, "constant constexpr bool " + name + (value ? " = true;" : " = false;"));
  }
  text = std::regex_replace(text, of_buffer, "");
  if (text.find("[[function_constant") != std::string::npos) {
    throw std::runtime_error("MLX's kernel has a function constant that no value is given for");
  }
}

void leave_one_address_space(std::string& text) {
  static const std::regex other(
      R"(template <typename T>\s*struct \w+<(device|constant|threadgroup) T\*> \{[^}]*\};)");
  text = std::regex_replace(text, other, "");
}

}  // namespace

std::string mlx_kernel_text(const std::string& file, const std::map<std::string, bool>& constants) {
  std::set<std::string> seen;
  std::string text;
  append_file(kKernels + file, seen, text);
  set_constants(constants, text);
  leave_one_address_space(text);
  return text;
}

std::string instantiate(const std::string& kernel) {
  return "template [[host_name(\"kernel\")]] [[kernel]] decltype(" + kernel + ") " + kernel + ";\n";
}

}  // namespace graft::standin
