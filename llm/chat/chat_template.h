#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "graft/export.h"
#include "graft/llm/tokenizer/tokenizer.h"
#include "graft/llm/weights/gguf_file.h"

namespace graft::llm {

/// One turn of a chat.
struct Message {
  std::string role;     ///< One that ChatTemplate::check_role takes.
  std::string content;  ///< UTF-8.
};

/// Tokens of a chat, and which of them a model is trained to give when the prompt is masked.
struct ChatTokens {
  std::vector<std::int32_t> tokens;
  std::vector<bool> is_target;  ///< What assistants say, and the <|im_end|> after it.
};

/// ChatML, with or without a default system message: what a GGUF file's Jinja template
/// (tokenizer.chat_template) must come down to. Templates are compared by their meaning, not by
/// their spelling, and never run.
class GRAFT_EXPORT ChatTemplate {
 public:
  /// `words` is what control tokens written in the contents of messages are; those of the template
  /// itself always count. Throws UserError if the file has no template, one that is not ChatML, or
  /// lacks ChatML's special tokens.
  ChatTemplate(const GgufFile& file, const Tokenizer& tokenizer,
               ControlTokens words = ControlTokens::kText);

  /// Throws UserError unless messages may have this role: "system", "user", "assistant" or "tool".
  static void check_role(std::string_view role);

  /// The system message that a chat without one gets.
  const std::optional<std::string>& default_system() const { return default_system_; }

  /// The chat as text; with `generation_prompt`, also the opening of an assistant's turn. This and
  /// what encodes a chat throw UserError for a role that is not one of `roles()`, and for words
  /// that are not valid UTF-8.
  std::string render(std::span<const Message> messages, bool generation_prompt) const;

  /// What follows the <|im_end|> of a reply when the user goes on, up to the next reply: with it,
  /// a chat grows at its end only.
  std::vector<std::int32_t> encode_next(const Tokenizer& tokenizer, const std::string& words) const;

  ChatTokens encode(const Tokenizer& tokenizer, std::span<const Message> messages) const;

  /// What `graft generate` starts from: the chat and the opening of the assistant's turn.
  std::vector<std::int32_t> encode_prompt(const Tokenizer& tokenizer,
                                          std::span<const Message> messages) const;

 private:
  struct Rendered {
    std::string text;
    std::vector<TextPart> words;    // The contents of messages.
    std::vector<TextPart> targets;  // Both ascending.
  };

  static void add_message(Rendered& rendered, const Message& message);
  Rendered render_messages(std::span<const Message> messages) const;
  std::vector<PlacedToken> encode_rendered(const Tokenizer& tokenizer,
                                           const Rendered& rendered) const;

  ControlTokens words_;
  std::optional<std::string> default_system_;
};

/// A Jinja template as one line a tag: blanks gone, strings in single quotes with \n spelt out and
/// joined where they are added up, `message['role']` as `message.role`, outputs that follow one
/// another made one, and comments left out. Nothing if it can't be read, or has text outside tags.
GRAFT_EXPORT std::optional<std::vector<std::string>> canonical_jinja(const std::string& source);

}  // namespace graft::llm
