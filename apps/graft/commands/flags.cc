#include "apps/graft/commands/flags.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <random>

#include "apps/graft/commands/number_range.h"
#include "graft/llm/files/utf8.h"

namespace graft::app {

void begin_group(CLI::App& command, const std::string& heading) {
  command.option_defaults()->group(heading);
}

void add_model_flags(CLI::App& command, ModelFlags& flags) {
  command.add_option("--model", flags.model, "The model, in GGUF")->type_name(kFile)->required();
  add_dtype_flag(command, flags.dtype, "Base weights; bf16 halves their memory");
  add_threads_flag(command, flags.threads);
}

void add_dtype_flag(CLI::App& command, std::string& dtype, const std::string& help) {
  command.add_option("--dtype", dtype, help)
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
}

void add_threads_flag(CLI::App& command, int& threads) {
  command.add_option("--threads", threads, "Threads to use; 0 is every core")
      ->check(at_least(0))
      ->capture_default_str();
}

void add_run_flags(CLI::App& command, ModelFlags& model, AdapterFlags& adapter,
                   bool takes_default) {
  begin_group(command, "Model and adapter");
  add_model_flags(command, model);
  CLI::Option* path =
      command
          .add_option("--adapter-path", adapter.path, "Folder of an adapter to put on the model")
          ->type_name(kFolder);
  CLI::Option* name = command.add_option(
      "--adapter", adapter.name,
      takes_default
          ? "Name of an adapter in the registry; usually its default, if that is for this model"
          : "Name of an adapter in the registry");
  name->excludes(path);
  if (takes_default) {
    command.add_flag("--no-adapter", adapter.none, "Leave out the registry's default too")
        ->excludes(path)
        ->excludes(name);
  }
  add_registry_flag(command, adapter.registry);
}

void add_registry_flag(CLI::App& command, std::string& registry) {
  command
      .add_option("--registry", registry,
                  "Folder of named adapters; usually $GRAFT_HOME/adapters, or else "
                  "$XDG_DATA_HOME/graft/adapters, or else ~/.local/share/graft/adapters")
      ->type_name(kFolder);
}

Sampler SamplingFlags::sampler() const {
  return Sampler(options, seed ? *seed : std::random_device{}());
}

void add_sampling_flags(CLI::App& command, SamplingFlags& flags) {
  begin_group(command, "Sampling");
  SamplerOptions& options = flags.options;
  command
      .add_option("--temp", options.temperature,
                  "Temperature; 0 takes the likeliest token, whatever the flags below say")
      ->check(at_least(0.0))
      ->capture_default_str();
  command.add_option("--top-k", options.top_k, "Keep so many of the likeliest tokens; 0 is all")
      ->check(at_least(0))
      ->capture_default_str();
  command.add_option("--top-p", options.top_p, "Keep the likeliest tokens of this much mass")
      ->check(above_up_to(0.0, 1.0))
      ->capture_default_str();
  command
      .add_option("--min-p", options.min_p,
                  "Keep tokens at least this likely, relative to the likeliest")
      ->check(between(0.0, 1.0))
      ->capture_default_str();
  command
      .add_option("--repetition-penalty", options.repetition_penalty,
                  "Above 1 makes recent tokens less likely, also at --temp 0; 1 is off")
      ->check(above(0.0))
      ->capture_default_str();
  command
      .add_option("--repetition-context-size", options.repetition_context_size,
                  "How many tokens are recent, those of the prompt included")
      ->check(at_least(0))
      ->capture_default_str();
  command.add_option("--seed", flags.seed, "Seed of sampling; usually another one each time")
      ->check(at_least<std::uint64_t>(0));
}

void add_system_prompt_flag(CLI::App& command, std::optional<std::string>& system_prompt) {
  command.add_option("--system-prompt", system_prompt, "System message; usually the model's own")
      ->check(check_utf8);
}

void add_max_tokens_flag(CLI::App& command, int& max_tokens) {
  command.add_option("--max-tokens,-m", max_tokens, "Stop a reply after so many tokens")
      ->check(at_least(0))
      ->capture_default_str();
}

void add_parse_special_flag(CLI::App& command, bool& parse_special, const std::string& in) {
  command.add_flag(
      "--parse-special", parse_special,
      fmt::format("Take marks such as <|im_end|> in {} as the model's own, not as text", in));
}

std::string check_utf8(const std::string& text) {
  const std::size_t at = find_invalid_utf8(text);
  return at == std::string::npos ? "" : fmt::format("not valid UTF-8 at byte {}", at + 1);
}

}  // namespace graft::app
