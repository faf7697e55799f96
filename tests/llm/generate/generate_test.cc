// Reading a text in parts, from a file, in a chat or with another adapter: against reading it
// whole.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "graft/llm/evaluate/mean_loss.h"
#include "graft/llm/evaluate/questions.h"
#include "graft/llm/generate/conversation.h"
#include "graft/llm/generate/generator.h"
#include "graft/llm/generate/prompt_cache.h"
#include "graft/llm/language_model.h"
#include "graft/llm/train/trainer.h"
#include "graft/llm/user_error.h"
#include "graft/llm/weights/gguf_file.h"
#include "graft/llm/weights/safetensors.h"
#include "mlx/ops.h"
#include "mlx/random.h"
#include "mlx/transforms.h"
#include "tests/support/tiny_model.h"

namespace graft::llm {
namespace {

using testing::read_text;
using testing::TemporaryFolder;
using testing::TinyModel;
using testing::write_text;

std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const UserError& error) {
    return error.what();
  }
  return "";
}

class GenerateTest : public ::testing::Test {
 protected:
  GenerateTest() {
    tiny_.write(path_);
    model_.emplace(path_);
    template_.emplace(model_->file, model_->tokenizer);
  }

  Llama fresh() const { return Llama(LlamaWeights(GgufFile::open(path_)), {}); }

  std::vector<int> tokens(int count, int seed = 0) const {
    std::vector<int> list;
    for (int i = 0; i < count; ++i) {
      list.push_back(3 + (i * 37 + seed * 101) % (tiny_.vocab_size() - 3));
    }
    return list;
  }

  AdapterLayout layout(int rank) const { return {model_->llama.config(), {.rank = rank}}; }

  static std::vector<LoraPair> pairs(const AdapterLayout& layout, std::uint64_t seed) {
    std::vector<LoraPair> list = layout.initial_pairs(seed);
    mx::random::KeySequence keys(seed);
    for (LoraPair& pair : list) {
      pair.b = mx::random::normal(pair.b.shape(), mx::float32, 0.0f, 0.1f, keys.next());
      mx::eval(pair.b);
    }
    return list;
  }

  static std::vector<float> copy(std::span<const float> logits) {
    return {logits.begin(), logits.end()};
  }

  // After a prompt, in the way generate() reads one.
  static std::vector<float> logits_after(const Llama& model, std::vector<int> prompt) {
    Sequence sequence(model);
    sequence.prefill(std::span(prompt).first(prompt.size() - 1));
    return copy(sequence.feed(prompt.back()));
  }

  static double largest_difference(const std::vector<float>& x, const std::vector<float>& y) {
    EXPECT_EQ(x.size(), y.size());
    double largest = 0.0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      largest = std::max(largest, static_cast<double>(std::abs(x[i] - y[i])));
    }
    return largest;
  }

  // The likeliest continuation, never ending by itself.
  static std::vector<int> continued(Sequence& sequence, const std::vector<int>& prompt, int count) {
    Sampler sampler({}, 0);
    return generate(sequence, prompt, {.max_tokens = count, .stops = [](int) { return false; }},
                    sampler, [](int) { return true; })
        .tokens;
  }

  const TinyModel tiny_;
  const TemporaryFolder folder_;
  const std::string path_ = folder_.file("tiny.gguf");
  std::optional<LanguageModel> model_;
  std::optional<ChatTemplate> template_;
};

constexpr double kTolerance = 1e-4;  // of logits of a few units, read in other pieces

TEST_F(GenerateTest, RewindingForgetsWhatCameAfter) {
  const std::vector<int> list = tokens(40);
  Sequence sequence(model_->llama);
  sequence.prefill(list);
  sequence.rewind(25);
  EXPECT_EQ(sequence.length(), 25);
  const std::vector<int> other = tokens(10, 7);
  sequence.prefill(std::span(other).first(9));
  const std::vector<float> logits = copy(sequence.feed(other.back()));
  std::vector<int> whole(list.begin(), list.begin() + 25);
  whole.insert(whole.end(), other.begin(), other.end());
  EXPECT_EQ(sequence.tokens(), whole);
  EXPECT_LT(largest_difference(logits, logits_after(model_->llama, whole)), kTolerance);
}

TEST_F(GenerateTest, TokensThatTheModelDoesNotHaveAreRefused) {
  const Llama model = fresh();
  Sequence sequence(model);
  EXPECT_THROW(sequence.feed(-1), UserError);
  EXPECT_THROW(sequence.feed(tiny_.vocab_size()), UserError);
  EXPECT_THROW(sequence.prefill(std::vector<int>{3, 1 << 30}), UserError);
  EXPECT_EQ(sequence.length(), 0);
  const int context = model.config().context_length;
  sequence.prefill(tokens(context));
  EXPECT_THROW(sequence.feed(3), UserError);
  EXPECT_EQ(sequence.length(), context);
}

TEST_F(GenerateTest, PrefillStopsWhenInterrupted) {
  Sequence sequence(model_->llama);
  EXPECT_FALSE(sequence.prefill(tokens(20), [] { return true; }));
  EXPECT_EQ(sequence.length(), 0);
}

TEST_F(GenerateTest, ContextEndsAText) {
  Sequence sequence(model_->llama);
  Sampler sampler({}, 0);
  const std::vector<int> prompt = tokens(tiny_.context_length - 5);
  const GenerateOptions options{.max_tokens = 100, .stops = [](int) { return false; }};
  const Generated generated =
      generate(sequence, prompt, options, sampler, [](int) { return true; });
  EXPECT_EQ(generated.finish, Finish::kContext);
  EXPECT_EQ(generated.tokens.size(), 6u);  // the last one is given, but not read
  EXPECT_THROW(generate(sequence, prompt, options, sampler, [](int) { return true; }), UserError);
}

TEST_F(GenerateTest, SwitchedAdapterEqualsAFreshModelBitForBit) {
  const AdapterLayout two = layout(2);
  const AdapterLayout five = layout(5);
  const std::vector<int> prompt = tokens(30);
  const std::vector<float> plain = logits_after(fresh(), prompt);
  Llama with_two = fresh();
  with_two.set_adapter(two, pairs(two, 1));
  Llama with_five = fresh();
  with_five.set_adapter(five, pairs(five, 2));

  // With the file gone, nothing can be loaded again.
  std::filesystem::remove(path_);
  model_->llama.set_adapter(two, pairs(two, 1));
  EXPECT_EQ(logits_after(model_->llama, prompt), logits_after(with_two, prompt));
  model_->llama.set_adapter(five, pairs(five, 2));
  EXPECT_EQ(logits_after(model_->llama, prompt), logits_after(with_five, prompt));
  EXPECT_NE(logits_after(with_two, prompt), logits_after(with_five, prompt));
  model_->llama.clear_adapter();
  EXPECT_EQ(model_->llama.adapter(), nullptr);
  EXPECT_EQ(logits_after(model_->llama, prompt), plain);
}

TEST_F(GenerateTest, AdapterOfAnotherModelIsRefusedAndTheOldOneStays) {
  const AdapterLayout good = layout(2);
  model_->llama.set_adapter(good, pairs(good, 1));
  const std::vector<float> before = logits_after(model_->llama, tokens(9));

  LlamaConfig wider = model_->llama.config();
  wider.intermediate_size += 8;
  const AdapterLayout wide(wider, {.rank = 2});
  EXPECT_NE(
      message_of([&] { model_->llama.set_adapter(wide, pairs(wide, 1)); }).find("another model"),
      std::string::npos);
  LlamaConfig deeper = model_->llama.config();
  ++deeper.num_layers;
  const AdapterLayout deep(deeper, {.rank = 2});
  EXPECT_NE(message_of([&] { model_->llama.set_adapter(deep, pairs(deep, 1)); }).find("2 layers"),
            std::string::npos);
  EXPECT_EQ(logits_after(model_->llama, tokens(9)), before);
}

class PromptCacheTest : public GenerateTest {
 protected:
  Sequence load(const std::vector<int>& prompt) const {
    return load_prompt_cache(cache_, model_->llama, owner_, prompt);
  }
  std::string refusal(const PromptCacheOwner& owner) const {
    return message_of([&] { load_prompt_cache(cache_, model_->llama, owner, prompt_); });
  }

  const std::string cache_ = folder_.file("cache.safetensors");
  const PromptCacheOwner owner_{"tiny.gguf", "0123", "f32", "", ""};
  const std::vector<int> prompt_ = tokens(50);
};

TEST_F(PromptCacheTest, GivesTheSameBitsBack) {
  Sequence first(model_->llama);
  first.prefill(std::span(prompt_).first(49));
  save_prompt_cache(cache_, first, owner_);
  const std::vector<int> expected = continued(first, {prompt_.back()}, 20);

  Sequence again = load(prompt_);
  EXPECT_EQ(again.length(), 49);
  EXPECT_EQ(again.tokens(), std::vector<int>(prompt_.begin(), prompt_.end() - 1));
  EXPECT_EQ(copy(again.feed(prompt_.back())), logits_after(model_->llama, prompt_));
  again.rewind(49);
  EXPECT_EQ(continued(again, {prompt_.back()}, 20), expected);
}

TEST_F(PromptCacheTest, ServesPromptsThatBeginAlike) {
  Sequence first(model_->llama);
  first.prefill(prompt_);
  save_prompt_cache(cache_, first, owner_);
  EXPECT_EQ(load({prompt_.begin(), prompt_.begin() + 20}).length(), 19);  // one is left to feed
  EXPECT_EQ(load({prompt_[0]}).length(), 0);
  EXPECT_EQ(load(tokens(60, 3)).length(), 0);

  std::vector<int> other(prompt_.begin(), prompt_.begin() + 30);
  for (const int token : tokens(15, 9)) other.push_back(token);
  ASSERT_NE(other[30], prompt_[30]);
  Sequence sequence = load(other);
  EXPECT_EQ(sequence.length(), 30);
  sequence.prefill(std::span(other).subspan(30, 14));
  EXPECT_LT(
      largest_difference(copy(sequence.feed(other.back())), logits_after(model_->llama, other)),
      kTolerance);
}

TEST_F(PromptCacheTest, RefusesOtherOwnersAndDamage) {
  Sequence first(model_->llama);
  first.prefill(prompt_);
  save_prompt_cache(cache_, first, owner_);
  PromptCacheOwner other = owner_;
  other.model_fingerprint = "4567";
  other.model = "other.gguf";
  EXPECT_NE(refusal(other).find("not to model other.gguf"), std::string::npos);
  other.model = owner_.model;
  EXPECT_NE(
      refusal(other).find("was made with model " + owner_.model + ", which has changed since"),
      std::string::npos);
  other = owner_;
  other.dtype = "bf16";
  EXPECT_NE(refusal(other).find("f32, not to bf16"), std::string::npos);
  other = owner_;
  other.adapter = "cron";
  other.adapter_fingerprint = "89";
  EXPECT_NE(refusal(other).find("not to adapter cron"), std::string::npos);
  for (const std::string& message : {refusal(other)}) {
    EXPECT_TRUE(message.starts_with("--prompt-cache: " + cache_)) << message;
  }
  EXPECT_EQ(refusal(owner_), "");

  const std::string whole = read_text(cache_);
  for (std::size_t length = 0; length < whole.size(); length += 97) {
    write_text(cache_, whole.substr(0, length));
    EXPECT_NE(refusal(owner_), "") << length;
  }
  std::string wrong = whole;
  wrong.replace(wrong.find("layers.0.keys"), 13, "layers.9.keys");
  write_text(cache_, wrong);
  EXPECT_NE(refusal(owner_).find("layers.0.keys"), std::string::npos);
  wrong = whole;
  wrong[wrong.find("\"tokens\":\"[") + 11] = 'x';
  write_text(cache_, wrong);
  EXPECT_NE(refusal(owner_).find("tokens"), std::string::npos);
  write_text(cache_, to_safetensors({{"a", mx::ones({2})}}));
  EXPECT_NE(refusal(owner_).find("no prompt cache"), std::string::npos);
}

class ConversationTest : public GenerateTest {
 protected:
  Conversation chat(std::optional<std::string> system = std::nullopt) const {
    return Conversation(*model_, std::move(system));
  }

  Conversation::Reply say(Conversation& chat, const std::string& words, int max_tokens = 12) {
    said_.clear();
    Sampler sampler({}, 0);
    return chat.say(words, max_tokens, sampler, [&](const std::string& text) { said_ += text; });
  }

  // What the model says if it reads all of the chat at once, in tokens.
  std::vector<int> reply_from_scratch(const std::vector<int>& before, const std::string& words,
                                      int max_tokens = 12) const {
    std::vector<int> prompt = before;
    prompt.push_back(*model_->tokenizer.find_special("<|im_end|>"));
    for (const int token : template_->encode_next(model_->tokenizer, words))
      prompt.push_back(token);
    Sequence sequence(model_->llama);
    Sampler sampler({}, 0);
    return generate(sequence, prompt,
                    {.max_tokens = max_tokens,
                     .stops = [&](int token) { return model_->tokenizer.ends_generation(token); }},
                    sampler, [](int) { return true; })
        .tokens;
  }

  static std::vector<int> last(const std::vector<int>& list, int count) {
    return {list.end() - count, list.end()};
  }

  std::string said_;
};

TEST_F(ConversationTest, TurnsReadOnlyWhatIsNewAndReplyAsIfAllWereRead) {
  Conversation talk = chat("be");
  const Conversation::Reply first = say(talk, "hi");
  EXPECT_EQ(
      first.read,
      static_cast<int>(template_
                           ->encode_prompt(model_->tokenizer,
                                           std::vector<Message>{{"system", "be"}, {"user", "hi"}})
                           .size()));
  for (const std::string words : {"abba", "so"}) {
    const std::vector<int> before = talk.tokens();
    const Conversation::Reply reply = say(talk, words, 9);
    const std::vector<int> next = template_->encode_next(model_->tokenizer, words);
    // The turn, the end of the reply before, and that reply's last token if nothing followed it.
    EXPECT_LE(reply.read, static_cast<int>(next.size()) + 2);
    EXPECT_EQ(last(talk.tokens(), reply.generated), reply_from_scratch(before, words, 9)) << words;
  }
}

TEST_F(ConversationTest, IsTheTemplatesTextOfTheSameMessages) {
  Conversation talk = chat();
  std::vector<Message> messages;
  for (const std::string words : {"hi", "ab", "no"}) {
    const Conversation::Reply reply = say(talk, words, 6);
    const std::vector<int> said = last(talk.tokens(), reply.generated);
    messages.push_back({"user", words});
    messages.push_back({"assistant", model_->tokenizer.decode(said, /*skip_special=*/false)});
  }
  const std::string text = model_->tokenizer.decode(talk.tokens(), false);
  EXPECT_EQ(text + "<|im_end|>\n", template_->render(messages, false));
}

TEST_F(ConversationTest, StoppedRepliesStayAsFarAsTheyWent) {
  Conversation talk = chat();
  Sampler sampler({}, 0);
  int shown = 0;
  const Conversation::Reply reply = talk.say(
      "hi", 50, sampler, [&](const std::string&) { ++shown; }, [&] { return shown >= 3; });
  EXPECT_EQ(reply.finish, Finish::kInterrupted);
  EXPECT_EQ(reply.generated, 3);
  const std::vector<int> before = talk.tokens();
  const Conversation::Reply next = say(talk, "go on");
  EXPECT_EQ(last(talk.tokens(), next.generated), reply_from_scratch(before, "go on"));

  // Stopped before the first token: as if the turn had never been.
  const std::vector<int> whole = talk.tokens();
  const Conversation::Reply none = talk.say(
      "never", 50, sampler, [](const std::string&) {}, [] { return true; });
  EXPECT_EQ(none.generated, 0);
  EXPECT_EQ(none.finish, Finish::kInterrupted);
  EXPECT_EQ(talk.tokens(), whole);
}

TEST_F(ConversationTest, AnExceptionLeavesTheChatAsItWas) {
  const auto fails = [](const std::string&) { throw std::runtime_error("the reader is gone"); };
  const auto replies = [&](bool failing) {
    Conversation talk = chat();
    Sampler sampler({}, 0);
    for (const char* words : {"hi", "go on"}) {
      if (failing) {
        EXPECT_THROW(talk.say(words, 8, sampler, fails), std::runtime_error);
      }
      say(talk, words);
    }
    return talk.tokens();
  };
  EXPECT_EQ(replies(true), replies(false));
}

TEST_F(ConversationTest, AnotherAdapterReadsAllOfItAgain) {
  Conversation talk = chat();
  say(talk, "hi");
  const std::vector<int> before = talk.tokens();
  const AdapterLayout two = layout(2);
  model_->llama.set_adapter(two, pairs(two, 1));
  talk.adapter_changed();
  const Conversation::Reply reply = say(talk, "and");
  EXPECT_GT(reply.read, static_cast<int>(before.size()));
  EXPECT_EQ(last(talk.tokens(), reply.generated), reply_from_scratch(before, "and"));
}

TEST_F(ConversationTest, FullContextIsSaidAndResetHelps) {
  Conversation talk = chat();
  EXPECT_NE(message_of([&] { say(talk, std::string(200, 'x')); }).find("say less"),
            std::string::npos);
  const Conversation::Reply first = say(talk, "hi", 1);
  std::string message;
  std::vector<int> before;
  for (int i = 0; i < 20 && message.empty(); ++i) {
    before = talk.tokens();
    message = message_of([&] { say(talk, "more", 3); });
  }
  EXPECT_NE(message.find("the context is full"), std::string::npos);
  EXPECT_NE(message.find("/reset"), std::string::npos);
  EXPECT_EQ(talk.tokens(), before);

  talk.reset();
  const Conversation::Reply again = say(talk, "hi", 1);
  EXPECT_EQ(again.read, first.read);
}

TEST_F(GenerateTest, MeanLossIsThatOfValidation) {
  std::vector<Sample> samples;
  for (const int length : {5, 30, 12, 61, 2, 30, 17}) {
    Sample sample{tokens(length, length),
                  std::vector<bool>(static_cast<std::size_t>(length), true)};
    sample.is_target[static_cast<std::size_t>(length) / 2] = length < 3;
    samples.push_back(sample);
  }
  const AdapterLayout two = layout(2);
  Trainer trainer(model_->llama, two, pairs(two, 1), {});
  Batches batches(samples, {.batch_size = 3});
  std::vector<Batch> all;
  for (std::int64_t i = 0; i < batches.per_epoch(); ++i) all.push_back(batches.at(i));
  const double expected = trainer.evaluate(all).value();

  model_->llama.set_adapter(two, pairs(two, 1));
  for (const int batch_size : {1, 3, 100}) {
    const MeanLoss mean = mean_loss(model_->llama, model_->llama.adapter(), samples, batch_size, 0);
    EXPECT_NEAR(mean.loss, expected, 1e-5) << batch_size;
    EXPECT_DOUBLE_EQ(mean.perplexity(), std::exp(mean.loss));
    std::int64_t targets = 0;
    for (const Batch& batch : all) targets += batch.num_targets;
    EXPECT_EQ(mean.targets, targets);
  }
}

std::vector<Question> of_lengths(const std::vector<std::size_t>& lengths) {
  std::vector<Question> questions;
  for (const std::size_t length : lengths) {
    questions.push_back({.prompt = std::vector<int>(length), .text = "", .expected = ""});
  }
  return questions;
}

using Groups = std::vector<std::vector<std::size_t>>;

// 8192 tokens at a time.
TEST(AnsweredTogether, AsManyAsFitIntoMemory) {
  EXPECT_EQ(answered_together({}, 16, 64), Groups());
  EXPECT_EQ(answered_together(of_lengths({5, 3, 4}), 16, 64), (Groups{{1, 2, 0}}));
  EXPECT_EQ(answered_together(of_lengths({5, 3, 4}), 16, 2), (Groups{{1, 2}, {0}}));
  // The longest counts for all of its group, and what is generated counts too.
  EXPECT_EQ(answered_together(of_lengths({2048, 1, 2048, 2048}), 0, 64), (Groups{{1, 0, 2, 3}}));
  EXPECT_EQ(answered_together(of_lengths({2048, 1, 2048, 2048}), 1, 64), (Groups{{1, 0, 2}, {3}}));
  // Too long even alone: one by one.
  EXPECT_EQ(answered_together(of_lengths({9000, 9000, 1}), 16, 64), (Groups{{2}, {0}, {1}}));
}

TEST(AnsweredTogether, ManyLongChatsNeverMoreThanFit) {
  const Groups groups = answered_together(of_lengths(std::vector<std::size_t>(64, 2000)), 48, 64);
  EXPECT_EQ(groups.size(), 16u);
  for (const auto& group : groups) EXPECT_EQ(group.size(), 4u);
}

}  // namespace
}  // namespace graft::llm
