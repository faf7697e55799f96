#pragma once

#include <cstdint>
#include <iosfwd>
#include <string>

namespace graft::llm {

/// Checks the header of a safetensors file of `size` bytes, without trusting any name, type, shape
/// or offset in it: each tensor lies inside the file, apart from the others, and is of a type that
/// read_safetensors takes. `path` stands for the file in messages. Throws UserError.
void check_safetensors_header(std::istream& in, std::uint64_t size, const std::string& path);

}  // namespace graft::llm
