#pragma once

#include <optional>
#include <string>

#include "apps/graft/commands/adapter_choice.h"
#include "apps/graft/commands/common.h"
#include "apps/graft/commands/generate.h"

namespace graft::app {

/// The flags of `graft chat`, with their defaults.
struct ChatFlags {
  ModelFlags model;
  AdapterFlags adapter;
  SamplingFlags sampling;
  std::optional<std::string> system_prompt;
  bool parse_special = false;
  int max_tokens = 256;
};

/// Talks with a model, turn by turn: what `graft chat` runs. Throws UserError.
void run_chat(const ChatFlags& flags);

}  // namespace graft::app
