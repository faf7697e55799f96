// Against Hugging Face `tokenizers`: tests/data/tokenizer_golden.json, which
// scripts/make_tokenizer_golden.py writes.

#include "graft/llm/tokenizer/tokenizer.h"

#include <gtest/gtest.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <thread>

#include "graft/llm/chat/chat_template.h"
#include "graft/llm/user_error.h"
#include "tests/llm/tokenizer/tiny_tokenizer.h"

namespace graft::llm {
namespace {

using Ids = std::vector<std::int32_t>;

class GoldenTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    if (!std::filesystem::exists(GRAFT_TEST_MODEL)) return;
    file_ = std::make_unique<GgufFile>(GgufFile::open(GRAFT_TEST_MODEL));
    tokenizer_ = std::make_unique<Tokenizer>(*file_);
    std::ifstream in(std::string(GRAFT_TEST_DATA) + "/tokenizer_golden.json");
    golden_ = nlohmann::json::parse(in);
  }
  static void TearDownTestSuite() {
    tokenizer_.reset();
    file_.reset();
  }

  void SetUp() override {
    if (!file_) GTEST_SKIP() << "no model at " << GRAFT_TEST_MODEL << "; run scripts/setup.sh";
  }

  static inline std::unique_ptr<GgufFile> file_;
  static inline std::unique_ptr<Tokenizer> tokenizer_;
  static inline nlohmann::json golden_;
};

TEST_F(GoldenTest, EncodesAsTokenizers) {
  const auto& texts = golden_.at("texts");
  ASSERT_GT(texts.size(), 300u);
  for (const auto& expected : texts) {
    const std::string text = expected.at("text");
    EXPECT_EQ(tokenizer_->encode(text), expected.at("ids").get<Ids>()) << expected.at("text");
  }
}

TEST_F(GoldenTest, EncodesControlTokensAsTextAsTokenizersDoes) {
  int different = 0;
  for (const auto& expected : golden_.at("texts")) {
    const Ids ids = expected.at("ids");
    const Ids plain = expected.value("plain_ids", ids);
    EXPECT_EQ(tokenizer_->encode(expected.at("text").get<std::string>(), ControlTokens::kText),
              plain)
        << expected.at("text");
    different += ids != plain;
  }
  EXPECT_GT(different, 15);
}

TEST_F(GoldenTest, DecodesAsTokenizers) {
  for (const auto& expected : golden_.at("texts")) {
    const Ids ids = expected.at("ids");
    EXPECT_EQ(tokenizer_->decode(ids), expected.at("decoded").get<std::string>());
    EXPECT_EQ(tokenizer_->decode(ids, false),
              expected.at("decoded_with_special").get<std::string>());
  }
  const auto& tokens = golden_.at("tokens");
  ASSERT_GE(tokens.size(), 100u);
  for (const auto& expected : tokens) {
    EXPECT_EQ(tokenizer_->decode(expected.at("ids").get<Ids>()),
              expected.at("decoded").get<std::string>());
  }
}

TEST_F(GoldenTest, StreamNeverSplitsACharacter) {
  for (const char* part : {"texts", "tokens"}) {
    for (const auto& expected : golden_.at(part)) {
      TextStream stream(*tokenizer_);
      std::string text;
      for (const std::int32_t id : expected.at("ids")) {
        const std::string piece = stream.push(id);
        EXPECT_EQ(find_invalid_utf8(piece), std::string::npos);
        text += piece;
      }
      EXPECT_EQ(text + stream.finish(), expected.at("decoded").get<std::string>());
    }
  }
}

TEST_F(GoldenTest, PlacesTokens) {
  const std::string text = "caf\xC3\xA9 12<|im_end|>\n  x";
  std::string joined;
  const std::vector<PlacedToken> tokens = tokenizer_->encode_placed(text);
  for (const PlacedToken& token : tokens) {
    EXPECT_EQ(token.begin, joined.size());
    joined += tokenizer_->bytes(token.id);
  }
  EXPECT_EQ(joined, text);
}

TEST_F(GoldenTest, KnowsSpecialTokens) {
  EXPECT_EQ(tokenizer_->vocab_size(), 49152);
  EXPECT_EQ(tokenizer_->bos(), 1);
  EXPECT_EQ(tokenizer_->eos(), 2);
  EXPECT_EQ(tokenizer_->find_special("<|im_end|>"), 2);
  EXPECT_EQ(tokenizer_->find_special("Hello"), std::nullopt);
  EXPECT_TRUE(tokenizer_->is_special(0));
  EXPECT_FALSE(tokenizer_->is_special(17));
  EXPECT_TRUE(tokenizer_->ends_generation(0));
  EXPECT_TRUE(tokenizer_->ends_generation(2));
  EXPECT_FALSE(tokenizer_->ends_generation(1));
}

TEST_F(GoldenTest, RefusesWhatIsNotText) {
  for (const char* text : {"\xFF", "a\xC3", "\xC0\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80"}) {
    EXPECT_THROW(tokenizer_->encode(text), UserError);
  }
  EXPECT_THROW(tokenizer_->decode(Ids{49152}), UserError);
  EXPECT_THROW(tokenizer_->decode(Ids{-1}), UserError);
}

TEST_F(GoldenTest, RendersChatsAsTransformers) {
  const ChatTemplate chat(*file_, *tokenizer_, ControlTokens::kParsed);
  const auto& chats = golden_.at("chats");
  ASSERT_GE(chats.size(), 12u);
  for (const auto& expected : chats) {
    std::vector<Message> messages;
    for (const auto& message : expected.at("messages")) {
      messages.push_back({message.at("role"), message.at("content")});
    }
    EXPECT_EQ(chat.render(messages, false), expected.at("text").get<std::string>());
    EXPECT_EQ(chat.encode(*tokenizer_, messages).tokens, expected.at("ids").get<Ids>());
    EXPECT_EQ(chat.encode_prompt(*tokenizer_, messages), expected.at("prompt_ids").get<Ids>());
  }
}

using testing::TinyTokenizer;

std::string refusal(const TinyTokenizer& tiny) {
  try {
    const Tokenizer tokenizer(tiny.file());
  } catch (const UserError& error) {
    return error.what();
  }
  return {};
}

TEST(Tokenizer, MergesByRank) {
  const Tokenizer tokenizer(TinyTokenizer().file());
  EXPECT_EQ(tokenizer.encode("hello"), (Ids{262}));
  EXPECT_EQ(tokenizer.encode("hell"), (Ids{261}));
  // "l l" comes before "he ll", so the first two of three stand together.
  EXPECT_EQ(tokenizer.encode("lll"), (Ids{260, 3 + 'l'}));
  EXPECT_EQ(tokenizer.encode("helll"), (Ids{261, 3 + 'l'}));
  EXPECT_EQ(tokenizer.encode(""), Ids{});
  // Words are merged apart, whatever lies between them.
  EXPECT_EQ(tokenizer.encode("he1llo"), (Ids{259, 3 + '1', 260, 3 + 'o'}));
  EXPECT_EQ(tokenizer.encode("he<|im_end|>llo"), (Ids{259, 2, 260, 3 + 'o'}));
}

TEST(Tokenizer, LongestSpecialTokenWins) {
  TinyTokenizer tiny;
  tiny.tokens.insert(tiny.tokens.end(), {"<|im_end|>>", "<a b>"});
  tiny.types.insert(tiny.types.end(), {3, 4});
  const Tokenizer tokenizer(tiny.file());
  EXPECT_EQ(tokenizer.encode("<|im_end|>>"), (Ids{263}));
  EXPECT_EQ(tokenizer.encode("<<|im_end|>"), (Ids{3 + '<', 2}));
  // A token that the user defined is split out too, but is part of the decoded text.
  EXPECT_EQ(tokenizer.encode("he<a b>"), (Ids{259, 264}));
  EXPECT_EQ(tokenizer.decode(Ids{259, 264, 263}), "he<a b>");
  EXPECT_EQ(tokenizer.decode(Ids{259, 264, 263}, false), "he<a b><|im_end|>>");
}

TEST(Tokenizer, AgreesWithItselfFromTheCache) {
  const Tokenizer tokenizer(TinyTokenizer().file());
  const std::string text = "hello hello, hell 11 \n\n hello";
  const Ids first = tokenizer.encode(text);
  EXPECT_EQ(tokenizer.encode(text), first);
  EXPECT_EQ(tokenizer.decode(first), text);
}

TEST(Tokenizer, ServesManyThreads) {
  const Tokenizer tokenizer(TinyTokenizer().file());
  const std::string text = "hello hell he 12 llo";
  const Ids expected = Tokenizer(TinyTokenizer().file()).encode(text);
  std::vector<std::thread> threads;
  std::array<bool, 4> right{};
  for (bool& mine : right) {
    threads.emplace_back([&] {
      mine = true;
      for (int i = 0; i < 100; ++i) {
        mine = mine && tokenizer.encode(text + " " + std::to_string(i)).size() > expected.size();
        mine = mine && tokenizer.encode(text) == expected;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(right, (std::array<bool, 4>{true, true, true, true}));
}

TEST(Tokenizer, RefusesOtherKindsByName) {
  TinyTokenizer model;
  model.model = "llama";
  EXPECT_NE(refusal(model).find("tokenizer 'llama' is not supported"), std::string::npos);
  TinyTokenizer pre;
  pre.pre = "llama-bpe";
  EXPECT_NE(refusal(pre).find("pre-tokenizer 'llama-bpe' is not supported"), std::string::npos);
  TinyTokenizer bos;
  bos.add_bos = true;
  EXPECT_NE(refusal(bos).find("add_bos_token"), std::string::npos);
}

TEST(Tokenizer, RefusesMalformedVocabularies) {
  const auto expect = [](const TinyTokenizer& tiny, const char* part) {
    EXPECT_NE(refusal(tiny).find(part), std::string::npos) << refusal(tiny);
  };
  TinyTokenizer tiny;
  EXPECT_EQ(refusal(tiny), "");
  tiny.types.pop_back();
  expect(tiny, "token_type': 262 entries for 263 tokens");
  tiny = TinyTokenizer();
  tiny.tokens.back() = "h";
  expect(tiny, "are the same");
  tiny = TinyTokenizer();
  tiny.tokens.back() = "\xFF";
  expect(tiny, "token 262 is not valid UTF-8");
  tiny = TinyTokenizer();
  tiny.tokens[1] = "";
  expect(tiny, "special token 1 has no text");
  tiny = TinyTokenizer();
  tiny.tokens[1] = std::string(257, 'x');
  expect(tiny, "special token 1 has 257 bytes");
  for (const char* merge : {"", "h", "h e l", "h  e", " he"}) {
    tiny = TinyTokenizer();
    tiny.merges[0] = merge;
    expect(tiny, "merge 0 is");
  }
  tiny = TinyTokenizer();
  tiny.merges[1] = "o o";
  expect(tiny, "merge 1 is of tokens that do not exist");
  tiny = TinyTokenizer();
  tiny.eos = 263;
  expect(tiny, "is 263, outside the vocabulary of 263");
}

}  // namespace
}  // namespace graft::llm
