#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "graft/export.h"
#include "graft/llm/chat/chat_template.h"
#include "graft/llm/generate/generator.h"
#include "graft/llm/language_model.h"
#include "graft/llm/tokenizer/tokenizer.h"

namespace graft::llm {

/// A chat whose turns the model reads once: what was said stays as keys and values, and a new turn
/// costs only its own tokens.
///
/// The tokens of a chat are those the model gave, not those its text would be cut into if it were
/// read again. Where a reply ends early, by an interrupt or a limit, what there is of it stays part
/// of the chat, as if the model had ended there.
class GRAFT_EXPORT Conversation {
 public:
  /// `model` must outlive this. `system` is the system message instead of the template's own, and
  /// `written` what control tokens are that people write out. Throws UserError if the model has no
  /// chat template that runs here.
  explicit Conversation(const LanguageModel& model, std::optional<std::string> system = {},
                        ControlTokens written = ControlTokens::kText);

  /// What a reply was. Its text is what `on_text` got.
  struct Reply {
    int read = 0;                       ///< Tokens the model read for it.
    int generated = 0;                  ///< Tokens of the reply.
    Finish finish = Finish::kEndToken;  ///< Why it ended.
  };

  /// The user's turn, and the reply as it comes. `interrupted` is asked between tokens. A turn
  /// interrupted before its first token is forgotten. Throws UserError, with the chat as before, if
  /// the turn does not fit.
  Reply say(const std::string& words, int max_tokens, Sampler& sampler,
            const std::function<void(const std::string&)>& on_text,
            const std::function<bool()>& interrupted = {});

  /// Starts again, with nothing said.
  void reset();

  /// To be called when the model has another adapter: keeps what was said, to be read again with
  /// the next turn.
  void adapter_changed() { sequence_.rewind(0); }

  /// Tokens of the chat so far.
  const std::vector<int>& tokens() const { return history_; }

 private:
  std::vector<int> turn(const std::string& words) const;

  const Llama& model_;
  const Tokenizer& tokenizer_;
  const ChatTemplate template_;
  std::optional<std::string> system_;
  std::vector<int> history_;  // Of which the sequence has read the beginning.
  Sequence sequence_;
};

}  // namespace graft::llm
