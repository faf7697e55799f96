#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "apps/graft/commands/common.h"

namespace graft::app {

/// The flags of `graft generate`, with their defaults.
struct GenerateFlags {
  ModelFlags model;
  std::string adapter_path;
  std::string prompt;
  std::optional<std::string> system_prompt;
  bool raw = false;
  int max_tokens = 100;
  double temperature = 0.0;
  double top_p = 1.0;
  std::optional<std::uint64_t> seed;
};

/// Prints the model's answer to a prompt: what `graft generate` runs.
/// Throws UserError.
void run_generate(const GenerateFlags& flags);

}  // namespace graft::app
