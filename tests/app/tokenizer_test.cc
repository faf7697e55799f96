// Against Hugging Face `tokenizers`: tests/data/tokenizer_golden.json, which
// scripts/make_tokenizer_golden.py writes.

#include "apps/graft/tokenizer/tokenizer.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>

#include "apps/graft/tokenizer/chat_template.h"
#include "apps/graft/user_error.h"

namespace graft::app {
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
  const ChatTemplate chat(*file_, *tokenizer_);
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

}  // namespace
}  // namespace graft::app
