#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "apps/graft/user_error.h"
#include "graft/llm/generate/sampler.h"
#include "graft/llm/tokenizer/tokenizer.h"

namespace CLI {
class App;
}

namespace graft::app {

// What several commands declare.

/// What help calls the value of a flag that names something on the disk.
inline constexpr const char* kFile = "FILE";
inline constexpr const char* kFolder = "DIR";

/// Flags that are added from now on stand under this heading.
void begin_group(CLI::App& command, const std::string& heading);

/// Of every command that runs a model.
struct ModelFlags {
  std::string model;
  std::string dtype = "f32";
  int threads = 0;
};

void add_model_flags(CLI::App& command, ModelFlags& flags);
void add_dtype_flag(CLI::App& command, std::string& dtype, const std::string& help);
void add_threads_flag(CLI::App& command, int& threads);

/// Of every command that runs a model with an adapter, or without.
struct AdapterFlags {
  std::string path;      ///< A folder, or empty.
  std::string name;      ///< In the registry, or empty.
  bool none = false;     ///< Not even the default.
  std::string registry;  ///< A folder; empty is the usual one.
};

/// Both groups. `takes_default` says whether the command takes the registry's default.
void add_run_flags(CLI::App& command, ModelFlags& model, AdapterFlags& adapter, bool takes_default);
void add_registry_flag(CLI::App& command, std::string& registry);

/// How replies are made: `graft generate` and `graft chat`.
struct SamplingFlags {
  SamplerOptions options;
  std::optional<std::uint64_t> seed;

  /// Throws UserError if an option is out of its range.
  Sampler sampler() const;
};

void add_sampling_flags(CLI::App& command, SamplingFlags& flags);
void add_system_prompt_flag(CLI::App& command, std::optional<std::string>& system_prompt);
void add_max_tokens_flag(CLI::App& command, int& max_tokens);

/// --parse-special; where `in` may have them, for the help.
void add_parse_special_flag(CLI::App& command, bool& parse_special, const std::string& in);

/// What marks such as <|im_end|> in a user's words then are.
inline ControlTokens control_tokens(bool parse_special) {
  return parse_special ? ControlTokens::kParsed : ControlTokens::kText;
}

/// What is wrong with a flag's text that the tokenizer would refuse later, without knowing where it
/// came from; empty if nothing is.
std::string check_utf8(const std::string& text);

}  // namespace graft::app
