#pragma once

#include <string>
#include <vector>

namespace graft::standin {

/// A kernel's parameter: its C++ type without address space, its name and what is in [[ ]].
struct Parameter {
  std::string type, name, attribute;
  bool is_buffer() const { return attribute.rfind("buffer", 0) == 0; }
  bool is_const() const { return type.rfind("const ", 0) == 0; }
};

/// A Metal source text made C++, line for line, with a function that enters its kernel.
struct Source {
  std::string cpp;
  std::vector<Parameter> parameters;
};

/// Throws std::runtime_error if `text` has no kernel, or says something the stand-in does not know.
Source translate(const std::string& text);

}  // namespace graft::standin
