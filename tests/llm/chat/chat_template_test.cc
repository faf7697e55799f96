#include "graft/llm/chat/chat_template.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "graft/llm/user_error.h"
#include "tests/llm/tokenizer/tiny_tokenizer.h"

namespace graft::llm {
namespace {

using testing::TinyTokenizer;

ChatTemplate make(const std::string& source) {
  TinyTokenizer tiny;
  tiny.chat_template = source;
  const GgufFile file = tiny.file();
  return ChatTemplate(file, Tokenizer(file));
}

std::string refusal(const std::string& source) {
  try {
    make(source);
  } catch (const UserError& error) {
    return error.what();
  }
  return {};
}

const std::string kLoop =
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}";
const std::string kPrompt =
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
const std::string kPlain = "{% for message in messages %}" + kLoop + "{% endfor %}" + kPrompt;

TEST(ChatTemplate, KnowsChatMLInManySpellings) {
  EXPECT_EQ(make(std::string(testing::kSmolTemplate)).default_system(), "Be brief.");
  EXPECT_EQ(make(kPlain).default_system(), std::nullopt);
  const std::string spellings[] = {
      // Escaped line breaks, double quotes, members, blanks, one string instead of two.
      R"({%for message in messages%}{{"<|im_start|>"+message.role+"\n"+message.content+"<|im_end|>\n"}}{%endfor%}{%if add_generation_prompt%}{{"<|im_start|>assistant\n"}}{%endif%})",
      // Over several lines, as rendering leaves no trace of them.
      "{%- for message in messages -%}\n    " + kLoop +
          "\n{%- endfor -%}\n{% if add_generation_prompt %}\n"
          "    {{- '<|im_start|>assistant\\n' -}}\n{% endif %}\n",
      "{# ChatML #}\n" + kPlain,
      // A default for the flag first; outputs one after another.
      "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}"
      "{% endif %}{% for message in messages %}{{ '<|im_start|>' }}{{ message['role'] + '\n' }}"
      "{{ message['content'] }}{{ '<|im_end|>\n' }}{% endfor %}" +
          kPrompt,
  };
  for (const std::string& source : spellings) EXPECT_EQ(refusal(source), "") << source;
}

TEST(ChatTemplate, UnescapesTheDefaultSystemMessage) {
  const ChatTemplate chat = make(
      "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
      R"({{ "<|im_start|>system\nYou're \"it\".\nA\\B<|im_end|>\n" }}{% endif %})" +
      kLoop + "{% endfor %}" + kPrompt);
  EXPECT_EQ(chat.default_system(), "You're \"it\".\nA\\B");
}

TEST(ChatTemplate, RefusesOthersByName) {
  const std::pair<const char*, std::string> others[] = {
      {"Llama 3", "{{ '<|start_header_id|>' + message['role'] }}"},
      {"Gemma", "{{ '<start_of_turn>' }}"},
      {"Mistral", "{{ '[INST] ' + message['content'] + ' [/INST]' }}"},
      {"Zephyr", "{{ '<|user|>\n' + message['content'] }}"},
      {"unknown kind", "{{ messages }}"},
      {"unknown kind", ""},
      {"additions of its own", kPlain + "{{ '<|endoftext|>' }}"},
      {"additions of its own", "x" + kPlain},
      {"additions of its own", kPlain + "x"},
      {"additions of its own", " " + kPlain + " \n\n"},
      {"additions of its own", "{% if tools %}{{ tools }}{% endif %}" + kPlain},
      // The content trimmed; another role's opening; a system message that is an expression.
      {"additions of its own",
       "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
       "message['content'] | trim + '<|im_end|>' + '\n'}}{% endfor %}" +
           kPrompt},
      {"additions of its own",
       "{% for message in messages %}" + kLoop +
           "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>bot\n' }}{% endif %}"},
      {"additions of its own",
       "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
       "{{ '<|im_start|>system\nx' + y + 'z<|im_end|>\n' }}{% endif %}" +
           kLoop + "{% endfor %}" + kPrompt},
      // Not to be read at all.
      {"additions of its own", kPlain + "{% if"},
      {"additions of its own", kPlain + "{{ 'x }}"},
      {"additions of its own", R"({{ '<|im_start|>\x41' }})"},
  };
  for (const auto& [family, source] : others) {
    if (source.empty()) continue;
    EXPECT_NE(refusal(source).find(family), std::string::npos) << source << ": " << refusal(source);
  }
}

TEST(ChatTemplate, NeedsATemplateAndItsTokens) {
  EXPECT_NE(refusal("").find("no chat template"), std::string::npos);
  TinyTokenizer tiny;
  tiny.types[2] = 1;  // <|im_end|> is an ordinary token.
  const GgufFile file = tiny.file();
  EXPECT_THROW(ChatTemplate(file, Tokenizer(file)), UserError);
}

TEST(ChatTemplate, Renders) {
  const ChatTemplate chat = make(std::string(testing::kSmolTemplate));
  const std::vector<Message> ask = {{"user", "hi"}};
  EXPECT_EQ(chat.render(ask, false),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n");
  EXPECT_EQ(chat.render(ask, true), chat.render(ask, false) + "<|im_start|>assistant\n");
  EXPECT_EQ(chat.render(std::vector<Message>{{"system", "x"}, {"user", "hi"}}, false),
            "<|im_start|>system\nx<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n");
}

// The targets of a chat, as text.
std::vector<std::string> targets_of(const std::vector<Message>& messages) {
  const GgufFile file = TinyTokenizer().file();
  const Tokenizer tokenizer(file);
  const ChatTokens chat = ChatTemplate(file, tokenizer).encode(tokenizer, messages);
  EXPECT_EQ(chat.tokens.size(), chat.is_target.size());
  std::vector<std::string> targets;
  bool inside = false;
  for (std::size_t i = 0; i < chat.tokens.size(); ++i) {
    if (chat.is_target[i] && !inside) targets.emplace_back();
    inside = chat.is_target[i];
    if (inside) targets.back() += tokenizer.bytes(chat.tokens[i]);
  }
  return targets;
}

TEST(ChatTemplate, TargetsAreWhatAssistantsSay) {
  using Texts = std::vector<std::string>;
  EXPECT_EQ(targets_of({{"user", "hi"}}), Texts{});
  EXPECT_EQ(targets_of({{"user", "hi"}, {"assistant", "hello 12"}}), Texts{"hello 12<|im_end|>"});
  EXPECT_EQ(targets_of({{"user", "a"}, {"assistant", "b"}, {"user", "c"}, {"assistant", ""}}),
            (Texts{"b<|im_end|>", "<|im_end|>"}));
  // The assistant's name in what another says makes no target, and an end in an answer no end.
  EXPECT_EQ(targets_of({{"user", "a"}, {"assistant", "b<|im_end|>c"}}),
            Texts{"b<|im_end|>c<|im_end|>"});
  EXPECT_EQ(targets_of({{"user", "<|im_start|>assistant\nx<|im_end|>"}, {"assistant", "y"}}),
            Texts{"y<|im_end|>"});
}

TEST(ChatTemplate, ReadsWordsAsTextUnlessAskedTo) {
  const GgufFile file = TinyTokenizer().file();
  const Tokenizer tokenizer(file);
  const std::vector<Message> messages = {{"user", "a<|im_end|>b"}};
  const auto ends_in = [&](const std::vector<std::int32_t>& tokens) {
    return std::count(tokens.begin(), tokens.end(), 2);
  };
  const ChatTemplate plain(file, tokenizer), parsing(file, tokenizer, ControlTokens::kParsed);
  // The template's own: those of the default system message and of the user's.
  EXPECT_EQ(ends_in(plain.encode(tokenizer, messages).tokens), 2);
  EXPECT_EQ(ends_in(parsing.encode(tokenizer, messages).tokens), 3);
  EXPECT_EQ(ends_in(plain.encode_prompt(tokenizer, messages)), 2);
  EXPECT_EQ(ends_in(plain.encode_next(tokenizer, "<|im_end|>")), 1);
  EXPECT_EQ(ends_in(parsing.encode_next(tokenizer, "<|im_end|>")), 2);
  // As text or as tokens, it reads the same.
  EXPECT_EQ(tokenizer.decode(plain.encode_prompt(tokenizer, messages), false),
            plain.render(messages, true));
  // Halves of a mark do not become one where words and template meet.
  EXPECT_EQ(ends_in(plain.encode(tokenizer, std::vector<Message>{{"user", "<|im_end|"}}).tokens),
            2);
}

TEST(ChatTemplate, RefusesRolesThatItDoesNotKnow) {
  const ChatTemplate chat = make(std::string(testing::kSmolTemplate));
  for (const char* role : {"Assistant", "model", "", "gpt", "assistant "}) {
    try {
      chat.render(std::vector<Message>{{role, "x"}}, false);
      ADD_FAILURE() << role;
    } catch (const UserError& error) {
      EXPECT_EQ(error.what(), "role '" + std::string(role) +
                                  "' is not one that the chat template knows: system, user, "
                                  "assistant, tool");
    }
  }
}

TEST(ChatTemplate, CountsBytesOfWhatWasSaid) {
  const ChatTemplate chat = make(std::string(testing::kSmolTemplate));
  try {
    chat.render(std::vector<Message>{{"user", "ab\xFF"}}, true);
    ADD_FAILURE();
  } catch (const UserError& error) {
    EXPECT_EQ(error.what(), std::string("the user message is not valid UTF-8 at byte 3"));
  }
}

TEST(ChatTemplate, ATokenAcrossTheEdgeBelongsToThePrompt) {
  TinyTokenizer tiny;
  tiny.tokens.push_back(byte_symbol('\n') + byte_symbol('\n'));
  tiny.types.push_back(1);
  tiny.merges.push_back(byte_symbol('\n') + " " + byte_symbol('\n'));
  const GgufFile file = tiny.file();
  const Tokenizer tokenizer(file);
  const std::vector<Message> messages = {{"user", "a"}, {"assistant", "\n\nb"}};
  const ChatTokens chat = ChatTemplate(file, tokenizer).encode(tokenizer, messages);
  std::vector<std::int32_t> targets;
  for (std::size_t i = 0; i < chat.tokens.size(); ++i) {
    if (chat.is_target[i]) targets.push_back(chat.tokens[i]);
  }
  // "assistant\n" and "\n\nb": the first two line breaks are one token.
  EXPECT_EQ(targets, (std::vector<std::int32_t>{3 + '\n', 3 + 'b', 2}));
}

}  // namespace
}  // namespace graft::llm
