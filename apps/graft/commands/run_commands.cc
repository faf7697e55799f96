#include "apps/graft/commands/run_commands.h"

#include <fmt/format.h>

#include <memory>
#include <string>

#include "apps/graft/commands/adapter.h"
#include "apps/graft/commands/chat.h"
#include "apps/graft/commands/evaluate.h"
#include "apps/graft/commands/generate.h"
#include "apps/graft/commands/model_flags.h"
#include "apps/graft/commands/number_range.h"
#include "apps/graft/user_error.h"
#include "graft/llm/files/utf8.h"

namespace graft::app {
namespace {

constexpr const char* kModel = "Model and adapter";
constexpr const char* kPrompt = "Prompt";
constexpr const char* kReply = "Reply";
constexpr const char* kSampling = "Sampling";
constexpr const char* kData = "Data";
constexpr const char* kOutput = "Output";

constexpr const char* kRegistryPlace =
    "Folder of named adapters; usually $GRAFT_HOME/adapters, or else "
    "$XDG_DATA_HOME/graft/adapters, or else ~/.local/share/graft/adapters";

// What the tokenizer would refuse later, without knowing which flag it came from.
std::string check_utf8(const std::string& text) {
  const std::size_t at = find_invalid_utf8(text);
  return at == std::string::npos ? "" : fmt::format("not valid UTF-8 at byte {}", at + 1);
}

void add_run_flags(CLI::App& command, ModelFlags& model, AdapterFlags& adapter, bool has_default) {
  begin_group(command, kModel);
  add_model_flags(command, model);
  CLI::Option* path =
      command
          .add_option("--adapter-path", adapter.path, "Folder of an adapter to put on the model")
          ->type_name(kFolder);
  CLI::Option* name = command.add_option(
      "--adapter", adapter.name,
      has_default
          ? "Name of an adapter in the registry; usually its default, if that is for this model"
          : "Name of an adapter in the registry");
  name->excludes(path);
  if (has_default) {
    command.add_flag("--no-adapter", adapter.none, "Leave out the registry's default too")
        ->excludes(path)
        ->excludes(name);
  }
  command.add_option("--registry", adapter.registry, kRegistryPlace)->type_name(kFolder);
}

void add_sampling_flags(CLI::App& command, SamplingFlags& flags) {
  begin_group(command, kSampling);
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

}  // namespace

void add_generate(CLI::App& program) {
  const auto flags = std::make_shared<GenerateFlags>();
  CLI::App* command = program.add_subcommand("generate", "Answer a prompt with a model");
  add_run_flags(*command, flags->model, flags->adapter, /*has_default=*/true);

  begin_group(*command, kPrompt);
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

  begin_group(*command, kReply);
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

void add_chat(CLI::App& program) {
  const auto flags = std::make_shared<ChatFlags>();
  CLI::App* command = program.add_subcommand("chat", "Talk with a model, turn by turn");
  add_run_flags(*command, flags->model, flags->adapter, /*has_default=*/true);
  begin_group(*command, kPrompt);
  add_system_prompt_flag(*command, flags->system_prompt);
  add_parse_special_flag(*command, flags->parse_special, "what is said");
  begin_group(*command, kReply);
  add_max_tokens_flag(*command, flags->max_tokens);
  add_sampling_flags(*command, flags->sampling);
  command->footer(
      "In the chat, /help lists what else can be said. Standard input may be a pipe: a line a "
      "turn.");
  command->callback([flags] { run_chat(*flags); });
}

void add_evaluate(CLI::App& program) {
  const auto flags = std::make_shared<EvaluateFlags>();
  CLI::App* command = program.add_subcommand(
      "evaluate", "Measure a model on data: loss, perplexity, and answers that are exactly right");
  add_run_flags(*command, flags->model, flags->adapter, /*has_default=*/false);
  command->add_flag("--compare-base", flags->compare_base,
                    "Measure the model without the adapter too, and print both side by side");

  begin_group(*command, kData);
  command
      ->add_option("--data", flags->data,
                   "File of JSON lines with text, or prompt and completion, or messages; or a "
                   "folder with such files")
      ->type_name("FILE|DIR")
      ->required();
  command->add_option("--split", flags->split, "Which file of a folder")
      ->check(CLI::IsMember({"test", "valid", "train"}))
      ->capture_default_str();
  command
      ->add_option("--max-seq-length", flags->max_seq_length,
                   "Cut longer samples off for the loss, in tokens; the model's context is the "
                   "limit")
      ->check(between<std::int64_t>(2, 1 << 20))
      ->capture_default_str();
  command->add_flag(
      "--mask-prompt", flags->mask_prompt,
      "Loss of answers alone, not of what they answer, as in training with this flag");
  add_parse_special_flag(*command, flags->parse_special, "the data");
  command->add_option("--batch-size", flags->batch_size, "Samples at a time, at most")
      ->check(at_least(1))
      ->capture_default_str();

  begin_group(*command, kOutput);
  command
      ->add_option("--max-tokens,-m", flags->max_tokens,
                   "Longest answer, in tokens; 0 measures the loss alone")
      ->check(at_least(0))
      ->capture_default_str();
  command->add_option("--show", flags->show, "Print the first so many answers")
      ->check(at_least(0))
      ->capture_default_str();
  command->add_flag("--json", flags->json, "Print one JSON object");
  command->callback([flags, command] {
    flags->split_given = command->count("--split") > 0;
    run_evaluate(*flags);
  });
}

void add_adapter(CLI::App& program) {
  const auto flags = std::make_shared<AdapterCommandFlags>();
  CLI::App* adapter = program.add_subcommand("adapter", "Keep adapters under names");
  adapter->require_subcommand(1);
  adapter->add_option("--registry", flags->registry, kRegistryPlace)->type_name(kFolder);
  adapter->fallthrough();  // --registry may stand behind the command too

  CLI::App* list = adapter->add_subcommand("list", "List the adapters; * marks the default");
  list->add_flag("--json", flags->json, "Print one JSON object");
  list->callback([flags] { run_adapter_list(*flags); });

  CLI::App* add = adapter->add_subcommand("add", "Check an adapter and copy it into the registry");
  add->add_option("name", flags->name, "Name to give it")->required();
  add->add_option("folder", flags->source, "Folder of the adapter")->required();
  add->add_option("--model", flags->model,
                  "The model that it is for, in GGUF; usually the one that the adapter names")
      ->type_name(kFile);
  add->add_flag("--replace", flags->replace, "Put it in the place of one of that name");
  add->callback([flags] { run_adapter_add(*flags); });

  CLI::App* remove = adapter->add_subcommand("remove", "Delete an adapter from the registry");
  remove->add_option("name", flags->name, "Its name")->required();
  remove->add_flag("--yes,-y", flags->yes, "Do not ask; needed where nobody could answer");
  remove->callback([flags] { run_adapter_remove(*flags); });

  CLI::App* use = adapter->add_subcommand(
      "use", "Make an adapter the one that generate and chat take by default");
  use->add_option("name", flags->name, "Its name");
  use->add_flag("--none", flags->none, "Have no default");
  use->callback([flags] { run_adapter_use(*flags); });
}

}  // namespace graft::app
