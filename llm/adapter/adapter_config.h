#pragma once

#include <string>
#include <string_view>

#include "graft/llm/model/adapter_options.h"

namespace graft::llm {

/// What an adapter_config.json says.
struct AdapterConfig {
  AdapterOptions options;
  std::string base_model;  ///< The model it was trained for: a name, a path, or empty if not said.
};

/// Reads the text of an adapter_config.json as PEFT writes it. `path` stands for the file in
/// messages. Throws UserError for anything that this program would not compute as PEFT does, and
/// names the key.
AdapterConfig read_adapter_config(std::string_view text, const std::string& path);

}  // namespace graft::llm
