#pragma once

#include <string>

#include "apps/graft/commands/common.h"

namespace graft::app {

/// The flags of `graft evaluate`, with their defaults.
struct EvaluateFlags {
  ModelFlags model;
  std::string adapter_path;
  std::string data;
  int max_tokens = 64;
  int batch_size = 64;
  int show = 5;
};

/// Counts how often the likeliest answer is exactly the expected one: what `graft evaluate` runs.
/// Throws UserError.
void run_evaluate(const EvaluateFlags& flags);

}  // namespace graft::app
