#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "apps/graft/commands/adapter_choice.h"
#include "apps/graft/commands/common.h"
#include "apps/graft/user_error.h"
#include "graft/llm/generate/sampler.h"

namespace graft::app {

/// How replies are made: flags of `graft generate` and `graft chat`.
struct SamplingFlags {
  SamplerOptions options;
  std::optional<std::uint64_t> seed;

  /// Throws UserError if an option is out of its range.
  Sampler sampler() const;
};

/// The flags of `graft generate`, with their defaults.
struct GenerateFlags {
  ModelFlags model;
  AdapterFlags adapter;
  SamplingFlags sampling;
  std::string prompt;  ///< "-" is standard input.
  std::optional<std::string> system_prompt;
  bool raw = false;
  bool parse_special = false;
  int max_tokens = 100;
  int num_samples = 1;
  std::vector<std::string> stops;
  std::string prompt_cache;
  bool json = false;
  bool quiet = false;
};

/// Prints the model's answers to a prompt: what `graft generate` runs.
/// Throws UserError.
void run_generate(const GenerateFlags& flags);

}  // namespace graft::app
