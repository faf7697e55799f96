#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "apps/graft/commands/commands.h"
#include "apps/graft/commands/common.h"
#include "apps/graft/commands/flags.h"
#include "apps/graft/terminal/format.h"
#include "apps/graft/terminal/interrupt.h"
#include "apps/graft/terminal/line_reader.h"
#include "apps/graft/terminal/style.h"
#include "apps/graft/terminal/wrap.h"
#include "apps/graft/user_error.h"
#include "graft/llm/adapter/registry.h"
#include "graft/llm/generate/conversation.h"

namespace graft::app {
namespace {

/// The flags of `graft chat`, with their defaults.
struct ChatFlags {
  ModelFlags model;
  AdapterFlags adapter;
  SamplingFlags sampling;
  std::optional<std::string> system_prompt;
  bool parse_special = false;
  int max_tokens = 256;
};

constexpr const char* kHelp =
    "/reset         starts a new conversation\n"
    "/adapter NAME  takes another adapter of the registry, or none; what was said stays\n"
    "/adapter       lists them\n"
    "/help          prints this\n"
    "/quit          ends, as Ctrl-D does, or Ctrl-C where nothing is typed\n"
    "Ctrl-C during a reply stops it. A blank in front sends a line that begins with '/'.";

/// The screen and what is said on it. On a terminal there is a prompt, and notes stand beside the
/// chat; elsewhere standard output is the model's words alone.
class ChatScreen {
 public:
  ChatScreen()
      : talks_(::isatty(STDIN_FILENO) == 1 && stdout_is_terminal()), style_(talks_), in_(0) {}

  bool is_terminal() const { return talks_; }

  void note(const std::string& text) const {
    std::fflush(stdout);
    if (talks_) {
      say(style_.faint(wrapped(text, terminal_width())) + "\n");
    } else {
      fmt::print(stderr, "{}\n", text);
    }
  }

  void say(const std::string& piece) const {
    fmt::print("{}", piece);
    std::fflush(stdout);
  }

  LineReader::Event ask(std::string& line) {
    const LineReader::Event event = in_.read(line, [&] {
      if (talks_) say("\n" + style_.strong(">") + " ");
    });
    if (talks_ && event != LineReader::Event::kLine) say("\n");
    return event;
  }

 private:
  bool talks_;
  Style style_;
  LineReader in_;
};

class Chat {
 public:
  explicit Chat(const ChatFlags& flags)
      : flags_(flags),
        sampler_(flags.sampling.sampler()),
        model_(load_model(flags.model, /*training=*/false)),
        adapter_(choose_adapter(model_, flags.adapter, /*use_default=*/true).name),
        conversation_(model_, flags.system_prompt, control_tokens(flags.parse_special)) {}

  void run() {
    const InterruptFlag interrupts;
    greet();
    std::string line;
    while (!ended_) {
      const LineReader::Event event = screen_.ask(line);
      if (event == LineReader::Event::kDiscarded) continue;
      if (event != LineReader::Event::kLine) break;
      if (line.find_first_not_of(" \t") == std::string::npos) continue;
      try {
        line.starts_with('/') ? obey(line) : reply_to(line);
      } catch (const UserError& error) {
        ++failures_;
        screen_.note(error.what());
      }
    }
    if (failures_ > 0 && !screen_.is_terminal()) {
      throw UserError(fmt::format("{} of the lines failed, as said above", failures_));
    }
  }

 private:
  void greet() const {
    if (!screen_.is_terminal()) return;
    const std::string& name = model_.llama.config().name;
    screen_.note(fmt::format("{}{}\n/help lists what else can be said here; Ctrl-D ends.",
                             name.empty() ? flags_.model.model : name,
                             adapter_.empty() ? "" : ", adapter " + adapter_));
  }

  void reply_to(const std::string& words) {
    InterruptFlag::lower();
    const Conversation::Reply reply = conversation_.say(
        words, flags_.max_tokens, sampler_, [&](const std::string& piece) { screen_.say(piece); },
        InterruptFlag::raised);
    if (reply.generated > 0 || reply.finish != Finish::kInterrupted) screen_.say("\n");
    InterruptFlag::lower();
    explain(reply);
  }

  void explain(const Conversation::Reply& reply) const {
    const int context = model_.llama.config().context_length;
    switch (reply.finish) {
      case Finish::kMaxTokens:
        screen_.note(fmt::format("(cut off after {} tokens, --max-tokens)", flags_.max_tokens));
        break;
      case Finish::kContext:
        screen_.note(fmt::format(
            "(cut off: the context of {} tokens is full; /reset starts a new conversation)",
            format_count(context)));
        break;
      case Finish::kInterrupted:
        screen_.note(reply.generated > 0
                         ? "(stopped; what there is of it counts as said)"
                         : "(stopped before the first word; your turn is forgotten)");
        break;
      default:
        break;
    }
  }

  void obey(const std::string& line) {
    constexpr const char* kBlank = " \t";
    const std::size_t end = line.find_first_of(kBlank);
    const std::string command = line.substr(0, end);
    std::string argument = end == std::string::npos ? "" : line.substr(end);
    argument.erase(0, argument.find_first_not_of(kBlank));
    argument.erase(argument.find_last_not_of(kBlank) + 1);
    if (command == "/adapter") {
      argument.empty() ? list_adapters() : take_adapter(argument);
    } else if (!argument.empty()) {
      throw UserError(fmt::format("{} takes nothing after it", command));
    } else if (command == "/reset") {
      conversation_.reset();
      screen_.note("(a new conversation)");
    } else if (command == "/help") {
      screen_.note(kHelp);
    } else if (command == "/quit") {
      ended_ = true;
    } else {
      throw UserError(fmt::format("there is no {}; /help lists what there is", command));
    }
  }

  void take_adapter(const std::string& name) {
    if (name == "none") {
      model_.llama.clear_adapter();
      adapter_.clear();
    } else {
      attach_adapter(model_,
                     AdapterRegistry(flags_.adapter.registry).find(name, model_.identity()));
      adapter_ = name;
    }
    conversation_.adapter_changed();
    screen_.note(adapter_.empty() ? "(no adapter)" : fmt::format("(adapter {})", adapter_));
  }

  void list_adapters() const {
    const AdapterRegistry registry(flags_.adapter.registry);
    const ModelIdentity model = model_.identity();
    std::vector<std::string> names;
    for (const AdapterRegistry::Entry& entry : registry.list()) {
      const bool fits = entry.problem.empty() && entry.model.fingerprint == model.fingerprint;
      if (fits) names.push_back(entry.name);
    }
    screen_.note(fmt::format("adapter: {}", adapter_.empty() ? "none" : adapter_));
    screen_.note(names.empty() ? "for this model there are none in " + registry.folder()
                               : fmt::format("for this model: {}", fmt::join(names, ", ")));
  }

  const ChatFlags& flags_;
  Sampler sampler_;
  LanguageModel model_;
  std::string adapter_;  // Its name; empty if there is none.
  Conversation conversation_;
  ChatScreen screen_;
  int failures_ = 0;
  bool ended_ = false;
};

void run_chat(const ChatFlags& flags) { Chat(flags).run(); }

}  // namespace

void add_chat(CLI::App& program) {
  const auto flags = std::make_shared<ChatFlags>();
  CLI::App* command = program.add_subcommand("chat", "Talk with a model, turn by turn");
  add_run_flags(*command, flags->model, flags->adapter, /*takes_default=*/true);
  begin_group(*command, "Prompt");
  add_system_prompt_flag(*command, flags->system_prompt);
  add_parse_special_flag(*command, flags->parse_special, "what is said");
  begin_group(*command, "Reply");
  add_max_tokens_flag(*command, flags->max_tokens);
  add_sampling_flags(*command, flags->sampling);
  command->footer(
      "In the chat, /help lists what else can be said. Standard input may be a pipe: a line a "
      "turn.");
  command->callback([flags] { run_chat(*flags); });
}

}  // namespace graft::app
