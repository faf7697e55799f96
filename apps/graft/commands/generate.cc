#include <fmt/format.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "apps/graft/commands/commands.h"
#include "apps/graft/commands/common.h"
#include "apps/graft/generate/generator.h"
#include "apps/graft/tokenizer/chat_template.h"

namespace graft::app {
namespace {

struct Flags {
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

using Clock = std::chrono::steady_clock;

double seconds_between(Clock::time_point start, Clock::time_point stop) {
  return std::chrono::duration<double>(stop - start).count();
}

std::vector<int> prompt_tokens(const Flags& flags, const LoadedModel& model) {
  if (flags.raw) return model.tokenizer.encode(flags.prompt);
  std::vector<Message> messages;
  if (flags.system_prompt) messages.push_back({"system", *flags.system_prompt});
  messages.push_back({"user", flags.prompt});
  return ChatTemplate(model.file, model.tokenizer).encode_prompt(model.tokenizer, messages);
}

void run(const Flags& flags) {
  Sampler sampler(flags.temperature, flags.top_p,
                  flags.seed ? *flags.seed : std::random_device{}());
  const LoadedModel model(flags.model, /*training=*/false);
  const AttachedAdapter adapter(flags.adapter_path, model.llama.config());
  const std::vector<int> prompt = prompt_tokens(flags, model);

  TextStream text(model.tokenizer);
  const auto show = [](const std::string& piece) {
    fmt::print("{}", piece);
    std::fflush(stdout);
  };
  const auto start = Clock::now();
  std::optional<Clock::time_point> first;
  const int count = generate(
      model.llama, adapter.get(), prompt, flags.max_tokens,
      [&](int token) { return model.tokenizer.ends_generation(token); }, sampler,
      [&](int token) {
        if (!first) first = Clock::now();
        show(text.push(token));
        return true;
      });
  show(text.finish() + "\n");

  const auto stop = Clock::now();
  // On stderr: stdout is the model's words alone.
  fmt::print(stderr, "prompt: {} tokens in {:.2f} s; generated: {} tokens, {:.1f} tokens/s\n",
             prompt.size(), seconds_between(start, first.value_or(stop)), count,
             count > 1 ? (count - 1) / seconds_between(*first, stop) : 0.0);
}

}  // namespace

void add_generate(CLI::App& program) {
  const auto flags = std::make_shared<Flags>();
  CLI::App* command = program.add_subcommand("generate", "Answer a prompt with a model");
  flags->model.add_to(*command);
  command->add_option("--adapter-path", flags->adapter_path,
                      "Folder of an adapter to put on the model");
  command->add_option("--prompt", flags->prompt, "What to say to the model")->required();
  command->add_option("--system-prompt", flags->system_prompt,
                      "System message, instead of the model's own");
  command->add_flag("--ignore-chat-template", flags->raw,
                    "Let the model continue the prompt as it stands, not answer it");
  command->add_option("--max-tokens", flags->max_tokens, "Stop after so many tokens")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--temp", flags->temperature, "Temperature; 0 takes the likeliest token")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--top-p", flags->top_p, "Sample from the likeliest tokens of this much mass")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  command->add_option("--seed", flags->seed,
                      "Seed of sampling; another one each time if not given");
  command->callback([flags] { run(*flags); });
}

}  // namespace graft::app
