#include "graft/llm/chat/chat_template.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

#include "graft/llm/files/printable.h"
#include "graft/llm/files/utf8.h"
#include "graft/llm/user_error.h"

namespace graft::llm {
namespace {

constexpr std::string_view kStart = "<|im_start|>";
constexpr std::string_view kEnd = "<|im_end|>";

constexpr std::string_view kGenerationPrompt = "<|im_start|>assistant\n";

// ChatML puts any word where the role goes. Models know these; another, as "Assistant" or "model",
// would be a turn that they never saw, and never a target of training.
constexpr std::array<std::string_view, 4> kRoles = {"system", "user", "assistant", "tool"};

// Far longer than any in use; its system message stands before every chat.
constexpr std::size_t kMaxTemplateBytes = std::size_t{64} << 10;

using Tags = std::vector<std::string>;

// Some templates first give the flag a value in case it has none.
const Tags kFlagDefault = {"if not add_generation_prompt is defined",
                           "set add_generation_prompt=false", "endif"};
const Tags kOpenLoop = {"for message in messages"};
const std::string kIfNoSystem = "if loop.first and messages[0].role!='system'";
const std::string kSystemOpening = R"(='<|im_start|>system\n)";
const std::string kSystemClosing = R"(<|im_end|>\n')";
const Tags kMessageAndRest = {R"(='<|im_start|>'+message.role+'\n'+message.content+'<|im_end|>\n')",
                              "endfor", "if add_generation_prompt", R"(='<|im_start|>assistant\n')",
                              "endif"};

bool consume(std::span<const std::string>& tags, const Tags& expected) {
  if (tags.size() < expected.size() ||
      !std::equal(expected.begin(), expected.end(), tags.begin())) {
    return false;
  }
  tags = tags.subspan(expected.size());
  return true;
}

// The inverse of canonical_jinja's spelling of strings.
std::string unescape(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 1 < text.size()) {
      ++i;
      out += text[i] == 'n' ? '\n' : text[i];
    } else {
      out += text[i];
    }
  }
  return out;
}

std::vector<std::int32_t> ids_of(const std::vector<PlacedToken>& tokens) {
  std::vector<std::int32_t> ids;
  for (const PlacedToken& token : tokens) ids.push_back(token.id);
  return ids;
}

struct Recognised {
  std::optional<std::string> default_system;
};

std::optional<Recognised> recognise(const std::string& source) {
  const std::optional<Tags> canonical = canonical_jinja(source);
  if (!canonical) return std::nullopt;
  std::span<const std::string> tags = *canonical;
  Recognised recognised;
  consume(tags, kFlagDefault);
  if (!consume(tags, kOpenLoop)) return std::nullopt;
  if (consume(tags, {kIfNoSystem})) {
    if (tags.size() < 2 || !tags[0].starts_with(kSystemOpening) ||
        !tags[0].ends_with(kSystemClosing) || tags[1] != "endif") {
      return std::nullopt;
    }
    const std::string_view literal = tags[0];
    const std::size_t length = literal.size() - kSystemOpening.size() - kSystemClosing.size();
    const std::string_view system = literal.substr(kSystemOpening.size(), length);
    // A quote that is not escaped would end the string: an expression, not one literal.
    for (std::size_t i = 0; i < system.size(); ++i) {
      if (system[i] == '\\') {
        ++i;
      } else if (system[i] == '\'') {
        return std::nullopt;
      }
    }
    recognised.default_system = unescape(system);
    tags = tags.subspan(2);
  }
  if (!consume(tags, kMessageAndRest) || !tags.empty()) return std::nullopt;
  return recognised;
}

// What another template is likely to be, by a mark that only its family has.
std::string_view family_of(const std::string& source) {
  constexpr std::pair<std::string_view, std::string_view> kMarks[] = {
      {"<|start_header_id|>", "Llama 3"},
      {"<start_of_turn>", "Gemma"},
      {"<|start|>", "Harmony"},
      {"<｜User｜>", "DeepSeek"},
      {"<|START_OF_TURN_TOKEN|>", "Command R"},
      {"<<SYS>>", "Llama 2"},
      {"[INST]", "Mistral"},
      {"<|user|>", "Zephyr or Phi-3"},
      {"### Instruction", "Alpaca"},
      {"USER:", "Vicuna"},
      {"<|im_start|>", "ChatML with additions of its own"},
  };
  for (const auto& [mark, family] : kMarks) {
    if (source.find(mark) != std::string::npos) return family;
  }
  return "an unknown kind";
}

}  // namespace

void ChatTemplate::check_role(std::string_view role) {
  if (std::ranges::find(kRoles, role) != kRoles.end()) return;
  throw UserError(fmt::format("role '{}' is not one that the chat template knows: {}",
                              printable(std::string(role)), fmt::join(kRoles, ", ")));
}

ChatTemplate::ChatTemplate(const GgufFile& file, const Tokenizer& tokenizer, ControlTokens words)
    : words_(words) {
  const std::string* source = file.find_string("tokenizer.chat_template");
  if (!source) {
    throw UserError(file.name() +
                    ": the model has no chat template; give data as \"text\", or a chat model");
  }
  if (source->size() > kMaxTemplateBytes) {
    throw UserError(fmt::format("{}: its chat template has {} bytes, expected at most {}",
                                file.name(), source->size(), kMaxTemplateBytes));
  }
  std::optional<Recognised> recognised = recognise(*source);
  if (!recognised) {
    throw UserError(fmt::format("{}: its chat template ({}) is not supported, only plain ChatML",
                                file.name(), family_of(*source)));
  }
  for (const std::string_view special : {kStart, kEnd}) {
    if (!tokenizer.find_special(special)) {
      throw UserError(fmt::format("{}: its chat template uses '{}', which is no special token",
                                  file.name(), special));
    }
  }
  default_system_ = std::move(recognised->default_system);
}

void ChatTemplate::add_message(Rendered& rendered, const Message& message) {
  check_role(message.role);
  // Before other text counts among its bytes.
  if (const std::size_t at = find_invalid_utf8(message.content); at != std::string::npos) {
    throw UserError(
        fmt::format("the {} message is not valid UTF-8 at byte {}", message.role, at + 1));
  }
  std::string& text = rendered.text;
  text += fmt::format("{}{}\n", kStart, message.role);
  const std::size_t begin = text.size();
  text += message.content;
  rendered.words.push_back({begin, text.size()});
  text += kEnd;
  if (message.role == "assistant") rendered.targets.push_back({begin, text.size()});
  text += '\n';
}

ChatTemplate::Rendered ChatTemplate::render_messages(std::span<const Message> messages) const {
  Rendered rendered;
  std::string& text = rendered.text;
  if (default_system_ && !messages.empty() && messages[0].role != "system") {
    text += fmt::format("{}system\n{}{}\n", kStart, *default_system_, kEnd);
  }
  for (const Message& message : messages) add_message(rendered, message);
  return rendered;
}

std::string ChatTemplate::render(std::span<const Message> messages, bool generation_prompt) const {
  std::string text = render_messages(messages).text;
  if (generation_prompt) text += kGenerationPrompt;
  return text;
}

std::vector<PlacedToken> ChatTemplate::encode_rendered(const Tokenizer& tokenizer,
                                                       const Rendered& rendered) const {
  if (words_ == ControlTokens::kParsed) return tokenizer.encode_placed(rendered.text);
  return tokenizer.encode_placed(rendered.text, rendered.words);
}

std::vector<std::int32_t> ChatTemplate::encode_next(const Tokenizer& tokenizer,
                                                    const std::string& words) const {
  Rendered rendered;
  rendered.text = "\n";
  add_message(rendered, {"user", words});
  rendered.text += kGenerationPrompt;
  return ids_of(encode_rendered(tokenizer, rendered));
}

ChatTokens ChatTemplate::encode(const Tokenizer& tokenizer,
                                std::span<const Message> messages) const {
  const Rendered rendered = render_messages(messages);
  ChatTokens chat;
  auto target = rendered.targets.begin();
  for (const PlacedToken& token : encode_rendered(tokenizer, rendered)) {
    while (target != rendered.targets.end() && token.begin >= target->end) ++target;
    // A token that starts before the content (a blank line merged with the one that ends the role)
    // belongs to the prompt.
    const bool is_target = target != rendered.targets.end() && token.begin >= target->begin;
    chat.tokens.push_back(token.id);
    chat.is_target.push_back(is_target);
  }
  return chat;
}

std::vector<std::int32_t> ChatTemplate::encode_prompt(const Tokenizer& tokenizer,
                                                      std::span<const Message> messages) const {
  Rendered rendered = render_messages(messages);
  rendered.text += kGenerationPrompt;
  return ids_of(encode_rendered(tokenizer, rendered));
}

}  // namespace graft::llm
