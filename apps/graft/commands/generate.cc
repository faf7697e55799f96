#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "apps/graft/commands/commands.h"
#include "apps/graft/commands/common.h"
#include "apps/graft/commands/flags.h"
#include "apps/graft/commands/number_range.h"
#include "apps/graft/user_error.h"
#include "graft/llm/adapter/adapter_file.h"
#include "graft/llm/chat/chat_template.h"
#include "graft/llm/data/fingerprint.h"
#include "graft/llm/files/utf8.h"
#include "graft/llm/generate/generator.h"
#include "graft/llm/generate/prompt_cache.h"
#include "graft/llm/generate/reply_text.h"

namespace graft::app {
namespace {

using Clock = std::chrono::steady_clock;
using nlohmann::ordered_json;

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

/// One answer.
struct Answer {
  std::string text;
  int tokens = 0;
  const char* finish = "";
};

/// What it took.
struct Cost {
  int prompt_tokens = 0;
  int cached_tokens = 0;  // Of the prompt's.
  double prompt_seconds = 0.0;
  int generated_tokens = 0;
  double generation_seconds = 0.0;

  double tokens_per_second() const {
    return generation_seconds > 0 ? generated_tokens / generation_seconds : 0.0;
  }
};

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Text from a file is the same prompt whoever wrote it: without a byte order mark, and with lines
// that end as here.
std::string prompt_text(const std::string& prompt) {
  if (prompt != "-") return prompt;
  const std::string given{std::istreambuf_iterator<char>(std::cin), {}};
  if (const std::size_t at = find_invalid_utf8(given); at != std::string::npos) {
    throw UserError(fmt::format("--prompt -: not valid UTF-8 at byte {}", at + 1));
  }
  std::string text;
  for (std::size_t i = given.starts_with(kByteOrderMark) ? kByteOrderMark.size() : 0;
       i < given.size(); ++i) {
    if (!std::string_view(given).substr(i).starts_with("\r\n")) text += given[i];
  }
  if (text.ends_with('\n')) text.pop_back();  // the end of the last line, not of a word
  return text;
}

std::vector<int> prompt_tokens(const GenerateFlags& flags, const LanguageModel& model) {
  const std::string text = prompt_text(flags.prompt);
  const ControlTokens written = control_tokens(flags.parse_special);
  if (flags.raw) return model.tokenizer.encode(text, written);
  std::vector<Message> messages;
  if (flags.system_prompt) messages.push_back({"system", *flags.system_prompt});
  messages.push_back({"user", text});
  return ChatTemplate(model.file, model.tokenizer, written)
      .encode_prompt(model.tokenizer, messages);
}

PromptCacheOwner owner_of(const GenerateFlags& flags, const LanguageModel& model,
                          const ChosenAdapter& adapter) {
  PromptCacheOwner owner{
      flags.model.model, model.fingerprint(), flags.model.dtype, adapter.name, {}};
  if (adapter.folder.empty()) return owner;
  const std::filesystem::path folder = adapter.folder;
  for (const char* file : {kAdapterConfigFile, kAdapterWeightsFile}) {
    owner.adapter_fingerprint += fingerprint_of_file((folder / file).string());
  }
  return owner;
}

// The prompt as read so far: nothing, or what a file has of it.
Sequence start_of(const std::string& cache_file, const PromptCacheOwner& owner,
                  const LanguageModel& model, const std::vector<int>& prompt) {
  if (!std::filesystem::exists(cache_file)) return Sequence(model.llama);
  Sequence sequence = load_prompt_cache(cache_file, model.llama, owner, prompt);
  if (sequence.length() == 0) {
    fmt::print(stderr,
               "--prompt-cache: {} holds another prompt, of no use to this one; it stays as it "
               "is\n",
               cache_file);
  }
  return sequence;
}

// Reads all of the prompt but its last token.
Sequence read_prompt(const GenerateFlags& flags, const LanguageModel& model,
                     const ChosenAdapter& adapter, const std::vector<int>& prompt, Cost& cost) {
  const std::span<const int> all(prompt);
  if (flags.prompt_cache.empty()) {
    Sequence sequence(model.llama);
    sequence.prefill(all.first(all.size() - 1));
    return sequence;
  }
  const PromptCacheOwner owner = owner_of(flags, model, adapter);
  const bool is_there = std::filesystem::exists(flags.prompt_cache);
  Sequence sequence = start_of(flags.prompt_cache, owner, model, prompt);
  cost.cached_tokens = sequence.length();
  sequence.prefill(all.first(all.size() - 1).subspan(static_cast<std::size_t>(sequence.length())));
  if (!is_there) save_prompt_cache(flags.prompt_cache, sequence, owner);
  return sequence;
}

const char* name_of(Finish finish) {
  return finish == Finish::kMaxTokens || finish == Finish::kContext ? "length" : "stop";
}

void show(const std::string& piece) {
  fmt::print("{}", piece);
  std::fflush(stdout);
}

void print_json(const std::vector<Answer>& answers, const Cost& cost) {
  ordered_json record;
  record["prompt_tokens"] = cost.prompt_tokens;
  record["cached_tokens"] = cost.cached_tokens;
  record["prompt_seconds"] = cost.prompt_seconds;
  record["tokens_per_second"] = cost.tokens_per_second();
  record["samples"] = ordered_json::array();
  for (const Answer& answer : answers) {
    record["samples"].push_back(
        {{"text", answer.text}, {"tokens", answer.tokens}, {"finish_reason", answer.finish}});
  }
  fmt::print("{}\n", record.dump(2));
}

// On stderr: stdout is the model's words alone.
void print_cost(const Cost& cost) {
  fmt::print(stderr, "prompt: {} tokens{} in {:.2f} s; generated: {} tokens, {:.1f} tokens/s\n",
             cost.prompt_tokens,
             cost.cached_tokens > 0 ? fmt::format(", {} of them from the file", cost.cached_tokens)
                                    : std::string(),
             cost.prompt_seconds, cost.generated_tokens, cost.tokens_per_second());
}

void run_generate(const GenerateFlags& flags) {
  Sampler sampler = flags.sampling.sampler();
  const StopStrings checked(flags.stops);
  if (flags.num_samples > 1 && flags.sampling.options.temperature == 0) {
    throw UsageError("--num-samples: at temperature 0 all samples are the same; give --temp too");
  }
  LanguageModel model = load_model(flags.model, /*training=*/false);
  const ChosenAdapter adapter = choose_adapter(model, flags.adapter, /*use_default=*/true);
  const std::vector<int> prompt = prompt_tokens(flags, model);
  check_fits(model.llama, prompt);

  Cost cost{.prompt_tokens = static_cast<int>(prompt.size())};
  const auto start = Clock::now();
  Sequence sequence = read_prompt(flags, model, adapter, prompt, cost);
  cost.prompt_seconds = seconds_since(start);

  const GenerateOptions options{.max_tokens = flags.max_tokens, .stops = [&](int token) {
                                  return model.tokenizer.ends_generation(token);
                                }};
  std::vector<Answer> answers;
  for (int sample = 1; sample <= flags.num_samples; ++sample) {
    sequence.rewind(static_cast<int>(prompt.size()) - 1);
    if (flags.num_samples > 1 && !flags.json) {
      show(fmt::format("{}[{} of {}]\n", sample > 1 ? "\n" : "", sample, flags.num_samples));
    }
    ReplyText text(model.tokenizer, flags.stops);
    const auto begin = Clock::now();
    const Generated generated =
        generate(sequence, std::span(prompt).last(1), options, sampler, [&](int token) {
          const std::string piece = text.push(token);
          if (!flags.json) show(piece);
          return !text.stopped();
        });
    const std::string rest = text.finish();
    if (!flags.json) show(rest + "\n");
    cost.generation_seconds += seconds_since(begin);
    cost.generated_tokens += static_cast<int>(generated.tokens.size());
    answers.push_back({text.text(), static_cast<int>(generated.tokens.size()),
                       text.stopped() ? "stop" : name_of(generated.finish)});
  }
  if (flags.json) {
    print_json(answers, cost);
  } else if (!flags.quiet) {
    print_cost(cost);
  }
}

}  // namespace

void add_generate(CLI::App& program) {
  const auto flags = std::make_shared<GenerateFlags>();
  CLI::App* command = program.add_subcommand("generate", "Answer a prompt with a model");
  add_run_flags(*command, flags->model, flags->adapter, /*takes_default=*/true);

  begin_group(*command, "Prompt");
  command
      ->add_option("--prompt,-p", flags->prompt, "What to say to the model; - reads it from stdin")
      ->required()
      ->check(check_utf8);
  add_system_prompt_flag(*command, flags->system_prompt);
  command
      ->add_flag("--ignore-chat-template", flags->raw,
                 "Let the model continue the prompt as it stands, not answer it")
      ->excludes("--system-prompt");
  add_parse_special_flag(*command, flags->parse_special, "the prompt");
  command
      ->add_option("--prompt-cache,--prompt-cache-file", flags->prompt_cache,
                   "File for what the model makes of the prompt (keys and values): written if "
                   "it is not there, and otherwise read, to go on from what this prompt has in "
                   "common with that one")
      ->type_name(kFile);

  begin_group(*command, "Reply");
  add_max_tokens_flag(*command, flags->max_tokens);
  command->add_option("--num-samples", flags->num_samples, "Answers to give, one after the other")
      ->check(at_least(1))
      ->capture_default_str();
  command
      ->add_option("--stop", flags->stops,
                   "End the answer before this text; may be given several times")
      ->take_all()
      ->allow_extra_args(false);
  command->add_flag("--quiet", flags->quiet, "Do not print what the answer cost, on stderr");
  command->add_flag("--json", flags->json, "Print one JSON object, at the end");
  add_sampling_flags(*command, flags->sampling);
  command->callback([flags] { run_generate(*flags); });
}

}  // namespace graft::app
