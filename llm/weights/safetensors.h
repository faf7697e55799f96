#pragma once

#include <map>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "mlx/array.h"

namespace graft::llm {

namespace mx = ::mlx::core;

/// Tensors in the safetensors format (https://github.com/huggingface/safetensors): a length, a JSON
/// header, and the data in the order given. `metadata` goes into the header too.
std::string to_safetensors(const std::vector<std::pair<std::string, mx::array>>& tensors,
                           const std::map<std::string, std::string>& metadata = {});

struct Safetensors {
  std::unordered_map<std::string, mx::array> tensors;  ///< Widened to float32.
  std::unordered_map<std::string, std::string> metadata;
};

/// Reads a file after checking every name, type, shape and offset in its header against its size.
/// Throws UserError.
Safetensors read_safetensors(const std::string& path);

}  // namespace graft::llm
