#include "apps/graft/commands/generate.h"

#include <fmt/format.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "apps/graft/generate/generator.h"
#include "apps/graft/tokenizer/chat_template.h"

namespace graft::app {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_between(Clock::time_point start, Clock::time_point stop) {
  return std::chrono::duration<double>(stop - start).count();
}

std::vector<int> prompt_tokens(const GenerateFlags& flags, const LoadedModel& model) {
  if (flags.raw) return model.tokenizer.encode(flags.prompt);
  std::vector<Message> messages;
  if (flags.system_prompt) messages.push_back({"system", *flags.system_prompt});
  messages.push_back({"user", flags.prompt});
  return ChatTemplate(model.file, model.tokenizer).encode_prompt(model.tokenizer, messages);
}

}  // namespace

void run_generate(const GenerateFlags& flags) {
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

}  // namespace graft::app
