#include "graft/llm/generate/conversation.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "graft/llm/generate/reply_text.h"
#include "graft/llm/user_error.h"

namespace graft::llm {
namespace {

std::vector<int> joined(std::span<const int> x, std::span<const int> y) {
  std::vector<int> both(x.begin(), x.end());
  both.insert(both.end(), y.begin(), y.end());
  return both;
}

}  // namespace

Conversation::Conversation(const LanguageModel& model, std::optional<std::string> system,
                           ControlTokens written)
    : model_(model.llama),
      tokenizer_(model.tokenizer),
      template_(model.file, model.tokenizer, written),
      system_(std::move(system)),
      sequence_(model.llama) {}

// The words of a turn as the template has them. Special tokens part the text, so that the tokens of
// a turn do not depend on what came before.
std::vector<int> Conversation::turn(const std::string& words) const {
  if (!history_.empty()) {
    const std::vector<int> next = template_.encode_next(tokenizer_, words);
    return joined(std::vector<int>{*tokenizer_.find_special("<|im_end|>")}, next);
  }
  std::vector<Message> messages;
  if (system_) messages.push_back({"system", *system_});
  messages.push_back({"user", words});
  return template_.encode_prompt(tokenizer_, messages);
}

Conversation::Reply Conversation::say(const std::string& words, int max_tokens, Sampler& sampler,
                                      const std::function<void(const std::string&)>& on_text,
                                      const std::function<bool()>& interrupted) {
  const std::vector<int> added = turn(words);
  const auto context = static_cast<std::size_t>(model_.config().context_length);
  if (added.size() >= context) {
    throw UserError(fmt::format("this turn has {} tokens; the model's context holds {}: say less",
                                added.size(), context));
  }
  if (history_.size() + added.size() >= context) {
    throw UserError(fmt::format(
        "the context is full: {} of its {} tokens are taken and this turn needs {}; /reset starts "
        "a new conversation",
        history_.size(), context, added.size()));
  }
  const auto known = history_.begin() + sequence_.length();
  const std::vector<int> unread = joined({known, history_.end()}, added);

  // An exception of a caller's function leaves the chat as it was before the turn.
  const auto forget_turn = [this] { sequence_.rewind(static_cast<int>(history_.size())); };
  ReplyText text(tokenizer_, {});
  const GenerateOptions options{
      .max_tokens = max_tokens,
      .stops = [&](int token) { return tokenizer_.ends_generation(token); },
      .interrupted = interrupted};
  try {
    const Generated generated = generate(sequence_, unread, options, sampler, [&](int token) {
      on_text(text.push(token));
      return !(interrupted && interrupted());
    });
    Reply reply{static_cast<int>(unread.size()), static_cast<int>(generated.tokens.size()),
                generated.finish};
    if (generated.finish == Finish::kStopped) reply.finish = Finish::kInterrupted;
    if (generated.tokens.empty() && reply.finish == Finish::kInterrupted) {
      forget_turn();
      return reply;
    }
    on_text(text.finish());
    history_ = joined(joined(history_, added), generated.tokens);
    return reply;
  } catch (...) {
    forget_turn();
    throw;
  }
}

void Conversation::reset() {
  history_.clear();
  sequence_.rewind(0);
}

}  // namespace graft::llm
