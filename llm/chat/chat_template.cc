#include "graft/llm/chat/chat_template.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>
#include <utility>

#include "graft/llm/user_error.h"

namespace graft::llm {
namespace {

constexpr std::string_view kStart = "<|im_start|>";
constexpr std::string_view kEnd = "<|im_end|>";

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

ChatTemplate::ChatTemplate(const GgufFile& file, const Tokenizer& tokenizer) {
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

ChatTemplate::Rendered ChatTemplate::render_messages(std::span<const Message> messages) const {
  Rendered rendered;
  std::string& text = rendered.text;
  if (default_system_ && !messages.empty() && messages[0].role != "system") {
    text += fmt::format("{}system\n{}{}\n", kStart, *default_system_, kEnd);
  }
  for (const Message& message : messages) {
    text += fmt::format("{}{}\n", kStart, message.role);
    const std::size_t begin = text.size();
    text += message.content;
    text += kEnd;
    if (message.role == "assistant") rendered.targets.push_back({begin, text.size()});
    text += '\n';
  }
  return rendered;
}

std::string ChatTemplate::render(std::span<const Message> messages, bool generation_prompt) const {
  std::string text = render_messages(messages).text;
  if (generation_prompt) text += fmt::format("{}assistant\n", kStart);
  return text;
}

std::string ChatTemplate::render_next(const std::string& words) const {
  return fmt::format("\n{}user\n{}{}\n{}assistant\n", kStart, words, kEnd, kStart);
}

ChatTokens ChatTemplate::encode(const Tokenizer& tokenizer,
                                std::span<const Message> messages) const {
  const Rendered rendered = render_messages(messages);
  ChatTokens chat;
  auto target = rendered.targets.begin();
  for (const PlacedToken& token : tokenizer.encode_placed(rendered.text)) {
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
  return tokenizer.encode(render(messages, true));
}

}  // namespace graft::llm
