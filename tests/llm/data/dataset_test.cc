#include "graft/llm/data/dataset.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <tuple>

#include "graft/llm/chat/chat_template.h"
#include "graft/llm/user_error.h"
#include "tests/llm/tokenizer/tiny_tokenizer.h"

namespace graft::llm {
namespace {

using testing::TinyTokenizer;

class DatasetTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() /
              ("graft_dataset_test_" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string write(const std::string& lines, const char* name = "train.jsonl") const {
    const std::filesystem::path path = folder_ / name;
    std::ofstream(path, std::ios::binary) << lines;
    return path.string();
  }

  Dataset read(const std::string& lines, const DataOptions& options = {}) const {
    return read_dataset(write(lines), file_, tokenizer_, options);
  }

  std::string error_of(const std::string& lines, const DataOptions& options = {}) const {
    try {
      read(lines, options);
    } catch (const UserError& error) {
      return error.what();
    }
    return {};
  }

  std::string text_of(const Sample& sample) const {
    return tokenizer_.decode(sample.tokens, false);
  }

  std::string targets_of(const Sample& sample) const {
    std::vector<std::int32_t> targets;
    for (std::size_t i = 1; i < sample.tokens.size(); ++i) {
      if (sample.is_target[i]) targets.push_back(sample.tokens[i]);
    }
    return tokenizer_.decode(targets, false);
  }

  const GgufFile file_ = TinyTokenizer().file();
  const Tokenizer tokenizer_{file_};
  std::filesystem::path folder_;
};

const char* const kRendered =
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
    "<|im_start|>assistant\nhello<|im_end|>\n";

TEST_F(DatasetTest, ReadsText) {
  const Dataset data = read("{\"text\": \"hello\"}\n{\"text\": \"he<|im_end|>\"}\n",
                            {.written = ControlTokens::kParsed});
  ASSERT_EQ(data.samples.size(), 2u);
  EXPECT_EQ(data.samples[0].tokens, (std::vector<std::int32_t>{262, 2}));
  EXPECT_EQ(data.samples[1].tokens, (std::vector<std::int32_t>{259, 2}));  // Not ended twice.
  EXPECT_EQ(data.num_targets(), 2);
  EXPECT_EQ(data.longest, 2);
  EXPECT_EQ(data.truncated, 0);
  EXPECT_EQ(data.num_left_out(), 0);
}

TEST_F(DatasetTest, ReadsPromptAndCompletion) {
  const std::string line = R"({"prompt": "hi", "completion": "hello"})";
  const Dataset plain = read(line);
  ASSERT_EQ(plain.samples.size(), 1u);
  EXPECT_EQ(text_of(plain.samples[0]), kRendered);
  EXPECT_EQ(plain.num_targets(), static_cast<std::int64_t>(plain.samples[0].tokens.size()) - 1);

  const Dataset masked = read(line, {.mask_prompt = true});
  EXPECT_EQ(masked.samples[0].tokens, plain.samples[0].tokens);
  EXPECT_EQ(targets_of(masked.samples[0]), "hello<|im_end|>");
  EXPECT_EQ(masked.num_targets(), 2);
}

TEST_F(DatasetTest, ReadsMessages) {
  const Dataset data = read(
      R"({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]})"
      "\n"
      R"({"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "a"},)"
      R"({"role": "assistant", "content": "b"}, {"role": "user", "content": "c"},)"
      R"({"role": "assistant", "content": "d"}], "id": 7})"
      "\n",
      {.mask_prompt = true});
  ASSERT_EQ(data.samples.size(), 2u);
  EXPECT_EQ(text_of(data.samples[0]), kRendered);
  EXPECT_EQ(targets_of(data.samples[1]), "b<|im_end|>d<|im_end|>");
}

TEST_F(DatasetTest, TakesWhatEditorsLeave) {
  const Dataset data = read("\xEF\xBB\xBF{\"text\": \"a\"}\r\n\r\n  \n{\"text\": \"b\"}");
  ASSERT_EQ(data.samples.size(), 2u);
  EXPECT_EQ(text_of(data.samples[1]), "b<|im_end|>");
}

TEST_F(DatasetTest, CutsOffWhatIsTooLong) {
  const std::string lines = "{\"text\": \"abcdef\"}\n{\"text\": \"ab\"}\n";
  const Dataset data = read(lines, {.max_seq_length = 3});
  ASSERT_EQ(data.samples.size(), 2u);
  EXPECT_EQ(text_of(data.samples[0]), "abc");
  EXPECT_EQ(text_of(data.samples[1]), "ab<|im_end|>");
  EXPECT_EQ(data.truncated, 1);
  EXPECT_EQ(data.first_truncated_line, 1);
  EXPECT_EQ(data.longest, 7);
  EXPECT_EQ(data.num_targets(), 4);
  EXPECT_NE(error_of(lines, {.max_seq_length = 1}).find("at least 2"), std::string::npos);
}

TEST_F(DatasetTest, CutsChatsOffAfterAnAnswer) {
  const std::string chat =
      R"({"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "a"},)"
      R"({"role": "assistant", "content": "b"}, {"role": "user", "content": "c"},)"
      R"({"role": "assistant", "content": "d"}]})";
  const std::string first_answer =
      "<|im_start|>system\nx<|im_end|>\n<|im_start|>user\na<|im_end|>\n"
      "<|im_start|>assistant\nb<|im_end|>";
  const auto whole = static_cast<std::int64_t>(read(chat).samples[0].tokens.size());
  const auto enough = static_cast<std::int64_t>(tokenizer_.encode(first_answer).size());
  for (const std::int64_t limit : {enough, enough + 1, whole - 2}) {
    const Dataset data = read(chat, {.max_seq_length = limit});
    EXPECT_EQ(text_of(data.samples[0]), first_answer) << limit;
    EXPECT_EQ(data.truncated, 1);
    EXPECT_EQ(data.longest, whole);
  }
  // Only the line break after the last answer is cut off.
  EXPECT_EQ(read(chat, {.max_seq_length = whole - 1}).truncated, 1);
  EXPECT_EQ(read(chat, {.max_seq_length = whole}).truncated, 0);
  for (const bool mask : {false, true}) {
    const std::string message = error_of(chat, {.max_seq_length = enough - 1, .mask_prompt = mask});
    EXPECT_NE(message.find("train.jsonl:1: a chat of"), std::string::npos) << message;
  }
}

TEST_F(DatasetTest, RefusesLinesBeyondAllReason) {
  EXPECT_NE(error_of("{\"text\": \"" + std::string(9 << 20, 'a')).find("train.jsonl:1: a line of"),
            std::string::npos);
  EXPECT_NE(error_of("{\"text\": \"a\", \"x\": " + std::string(1 << 20, '[')).find("nested"),
            std::string::npos);
}

TEST_F(DatasetTest, LeavesOutWhatTrainsNothingAndSaysWhatAndWhere) {
  const std::string two =
      R"({"messages": [{"role": "user", "content": "a"}]})"
      "\n"
      R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})";
  const Dataset data = read(two, {.mask_prompt = true});
  EXPECT_EQ(data.samples.size(), 1u);
  EXPECT_EQ(left_out_text(data),
            "1 of 2 samples left out: 1 without an answer to train on (in line 1)");
  EXPECT_EQ(read(two).num_left_out(), 0);
  EXPECT_EQ(left_out_text(read(two)), "");

  const Dataset texts =
      read("{\"text\": \"a\"}\n\n{\"text\": \"\"}\n{\"text\": \"<|im_end|>\"}\n{\"text\": \"\"}\n",
           {.written = ControlTokens::kParsed});
  EXPECT_EQ(texts.samples.size(), 1u);
  EXPECT_EQ(texts.num_left_out(), 3);
  EXPECT_EQ(left_out_text(texts),
            "3 of 4 samples left out: 2 with an empty text (the first in line 3), 1 of one token, "
            "that nothing predicts (in line 4)");

  // An end mark alone is no answer to learn, whether the prompt is masked or not.
  const std::string chats = R"({"prompt": "a", "completion": "b"})"
                            "\n"
                            R"({"prompt": "a", "completion": ""})";
  for (const bool mask : {false, true}) {
    const Dataset pairs = read(chats, {.mask_prompt = mask});
    ASSERT_EQ(pairs.left_out.size(), 1u);
    EXPECT_EQ(pairs.left_out[0].reason, LeftOutReason::kEmptyAnswer);
    EXPECT_EQ(pairs.left_out[0].samples, 1);
    EXPECT_EQ(pairs.left_out[0].first_line, 2);
    EXPECT_EQ(pairs.samples.size(), 1u);
  }
  const char* const none = R"({"messages": [{"role": "assistant", "content": ""}]})";
  EXPECT_NE(
      error_of(none).find("no sample has a token to train on: 1 of 1 samples left out: 1 with "
                          "an empty answer (in line 1)"),
      std::string::npos);
  // One empty answer of several is part of a chat that has others to learn.
  const char* const some =
      R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""},)"
      R"({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})";
  EXPECT_EQ(read(some).num_left_out(), 0);
}

TEST_F(DatasetTest, NamesFileAndLine) {
  const std::string good = "{\"text\": \"a\"}\n";
  const std::pair<std::string, const char*> cases[] = {
      {good + "{\"text\": \"a\"", "train.jsonl:2: not valid JSON"},
      {good + "\n{\"text\": \"\xFF\"}", "train.jsonl:3: not valid UTF-8 at byte 11"},
      {good + "{\"text\": \"\\ud800\"}", "train.jsonl:2: not valid JSON"},
      {good + "{\"text\": \"a\", \"text\": \"b\"}", "train.jsonl:2: \"text\" is given twice"},
      {good + "{\"text\": \"a\", \"x\": 1e999}", "train.jsonl:2: a number in it is too large"},
      {good + "[1]",
       "train.jsonl:2: expected a JSON object; the file is to have one object a line"},
      {"[\n  {\"text\": \"a\"}\n]", "not a list of objects"},
      {"[{\"text\": \"a\"},\n",
       "train.jsonl:1: not valid JSON at byte 16; the file is to have one"},
      {"[{\"text\": \"a\"}]", "one object a line, not a list of objects"},
      {"{\n  \"text\": \"a\"\n}",
       "train.jsonl:1: not valid JSON at byte 2; the file is to have one"},
      {"{\"text\": \"a\"} {\"text\": \"b\"}", "one object a line, whole on that line"},
      {"{\"text\": NaN}", "train.jsonl:1: \"text\" is not a string"},
      {"{\"text\": \"a\", \"x\": 1NaN}", "train.jsonl:1: not valid JSON at byte 21"},
      {"{\"text\": \"a\", \"x\": NaN5}", "train.jsonl:1: not valid JSON"},
      {"{\"text\": \"a\", \"x\": -NaN}", "train.jsonl:1: not valid JSON"},
      {"{\"text\": \"a\", NaN: 1}", "train.jsonl:1: not valid JSON"},
      {"{\"text\": \"a\", \"x\": NaN, \"y\": !}", "train.jsonl:1: not valid JSON at byte 30"},
      {good + "{\"text\": 3}", "train.jsonl:2: \"text\" is not a string"},
      {good + "{\"prompt\": \"a\", \"completion\": \"b\"}", "train.jsonl:2: \"text\" is missing"},
      {"{\"txt\": \"a\"}", "train.jsonl:1: expected \"prompt\" and \"completion\""},
      {"{\"prompt\": \"a\", \"completion\": null}",
       "train.jsonl:1: \"completion\" is not a string"},
      {"{\"messages\": []}", "train.jsonl:1: \"messages\" is not a list"},
      {"{\"messages\": \"a\"}", "train.jsonl:1: \"messages\" is not a list"},
      {"{\"messages\": [3]}", "train.jsonl:1: a message is not a JSON object"},
      {"{\"messages\": [{\"role\": \"user\"}]}", "train.jsonl:1: \"content\" is missing"},
      {"{\"messages\": [{\"role\": 1, \"content\": \"\"}]}", "train.jsonl:1: \"role\" is not"},
      {"", "train.jsonl: no samples"},
      {"\n\n", "train.jsonl: no samples"},
  };
  for (const auto& [lines, part] : cases) {
    const std::string message = error_of(lines);
    EXPECT_NE(message.find(part), std::string::npos) << lines << ": " << message;
    EXPECT_EQ(message.find('\n'), std::string::npos);
  }
  EXPECT_NE(error_of(good, {.mask_prompt = true}).find("--mask-prompt"), std::string::npos);
}

TEST_F(DatasetTest, RefusesWhatTheChatTemplateHasNoPlaceFor) {
  const std::string good =
      R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})"
      "\n";
  const auto error_with = [&](const std::string& role, const std::string& more,
                              const std::string& beside = "") {
    return error_of(good + R"({"messages": [{"role": "user", "content": "a"}, {"role": ")" + role +
                    R"(", "content": "")" + more + "}]" + beside + "}");
  };
  for (const char* role : {"Assistant", "model", "gpt", "human"}) {
    EXPECT_EQ(error_with(role, ""), (folder_ / "train.jsonl").string() + ":2: role '" + role +
                                        "' is not one that the chat template knows: system, user, "
                                        "assistant, tool");
  }
  for (const auto& [more, beside, key] :
       {std::tuple{R"(, "tool_calls": [{"function": {"name": "f"}}])", "", "tool_calls"},
        std::tuple{R"(, "function_call": {"name": "f"})", "", "function_call"},
        std::tuple{"", R"(, "tools": [{"name": "f"}])", "tools"}}) {
    const std::string message = error_with("assistant", more, beside);
    EXPECT_NE(message.find(std::string("train.jsonl:2: \"") + key + "\" of "), std::string::npos)
        << message;
    EXPECT_NE(message.find("has no place for it"), std::string::npos) << message;
  }
  // Nothing in them is nothing lost.
  EXPECT_EQ(read(good + R"({"tools": [], "messages": [{"role": "user", "content": "a"},)"
                        R"({"role": "assistant", "content": "b", "tool_calls": null}]})")
                .samples.size(),
            2u);
}

TEST_F(DatasetTest, MarksInTheDataAreTextUnlessAskedFor) {
  const auto ends = [](const Sample& sample) {
    return std::count(sample.tokens.begin(), sample.tokens.end(), 2);
  };
  const std::string chat = R"({"prompt": "a<|im_end|>", "completion": "<|im_end|>b"})";
  const std::string text = R"({"text": "a<|im_end|>b"})";
  const DataOptions parsing{.written = ControlTokens::kParsed};
  // The template's own: after the system message, the prompt and the completion.
  EXPECT_EQ(ends(read(chat).samples[0]), 3);
  EXPECT_EQ(ends(read(chat, parsing).samples[0]), 5);
  EXPECT_EQ(targets_of(read(chat, {.mask_prompt = true}).samples[0]), "<|im_end|>b<|im_end|>");
  EXPECT_EQ(ends(read(text).samples[0]), 1);
  EXPECT_EQ(ends(read(text, parsing).samples[0]), 2);
  EXPECT_EQ(text_of(read(text).samples[0]), text_of(read(text, parsing).samples[0]));
}

TEST_F(DatasetTest, TakesPythonsNumbersWhereNobodyReadsThem) {
  const Dataset data =
      read(R"({"score": NaN, "text": "a NaN, \\", "more": [-Infinity,Infinity, {"x": NaN}]})"
           "\n"
           R"({"text": "say \"NaN"})");
  ASSERT_EQ(data.samples.size(), 2u);
  EXPECT_EQ(text_of(data.samples[0]), "a NaN, \\<|im_end|>");
  EXPECT_EQ(text_of(data.samples[1]), "say \"NaN<|im_end|>");
}

TEST_F(DatasetTest, TextNeedsNoChatTemplate) {
  TinyTokenizer tiny;
  tiny.chat_template = "{{ '[INST]' }}";
  const GgufFile file = tiny.file();
  const Tokenizer tokenizer(file);
  EXPECT_EQ(read_dataset(write("{\"text\": \"a\"}"), file, tokenizer).samples.size(), 1u);
  EXPECT_THROW(read_dataset(write("{\"prompt\": \"a\", \"completion\": \"b\"}"), file, tokenizer),
               UserError);
}

TEST_F(DatasetTest, ReadsAFolder) {
  EXPECT_THROW(read_data((folder_ / "none").string(), file_, tokenizer_), UserError);
  EXPECT_THROW(read_data(folder_.string(), file_, tokenizer_), UserError);
  write("{\"text\": \"a\"}");
  DataSplits splits = read_data(folder_.string(), file_, tokenizer_);
  EXPECT_EQ(splits.train.samples.size(), 1u);
  EXPECT_FALSE(splits.valid || splits.test);
  write("{\"text\": \"a\"}\n{\"text\": \"b\"}", "valid.jsonl");
  write("{\"prompt\": \"a\", \"completion\": \"b\"}", "test.jsonl");
  splits = read_data(folder_.string(), file_, tokenizer_);
  ASSERT_TRUE(splits.valid && splits.test);
  EXPECT_EQ(splits.valid->samples.size(), 2u);
  EXPECT_EQ(splits.test->samples.size(), 1u);
  // What is not asked for may be broken.
  write("{", "valid.jsonl");
  write("nonsense", "test.jsonl");
  splits = read_data(folder_.string(), file_, tokenizer_, {}, {.valid = false, .test = false});
  EXPECT_FALSE(splits.valid || splits.test);
  EXPECT_THROW(read_data(folder_.string(), file_, tokenizer_, {}, {.test = false}), UserError);
}

}  // namespace
}  // namespace graft::llm
